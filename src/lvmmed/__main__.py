"""`python -m lvmmed`: the same program as `lvmmed`."""

from lvmmed.cli import main

if __name__ == "__main__":
    main()
