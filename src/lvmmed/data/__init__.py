"""From files to pixels: readers, intensity policies, the image store, labelled sets, phantoms."""
