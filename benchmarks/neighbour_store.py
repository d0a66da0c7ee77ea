"""A store whose volumes are groups of look-alikes, for graphs of hard companions.

Groups the images of a store by the features of a trained encoder: the first image without a group
takes its nearest ones (cosine of pooled features), and so on. The copy says the number of the group
where the volume stands, so that `data.composition=volume` fills each graph from one group. It
stands in for companions by the neighbours of the last epoch, without a sampler of their own; the
encoder is better than that of any epoch but the last.

    python benchmarks/neighbour_store.py RUN STORE OUT [--group 32] [--size 48]
"""

import argparse
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from effective_rank import features_of

from lvmmed.data.store import Store
from lvmmed.ssl.partition import similar_order


def main() -> None:
    """Write the copy; pixels are linked, not copied."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--group", type=int, default=32, help="images of a group")
    parser.add_argument("--size", type=int, default=48, help="side of the images in pixels")
    options = parser.parse_args()
    store = Store.open(options.store)
    features = features_of(options.run, store, np.arange(len(store)), None, options.size)
    group = np.empty(len(store), dtype=np.int64)
    group[similar_order(features, options.group).numpy()] = np.arange(len(store)) // options.group
    options.out.mkdir()
    for path in options.store.glob("shard_*.bin"):
        os.link(path, options.out / path.name)
    shutil.copy(options.store / "store.json", options.out)
    index = pq.read_table(options.store / "index.parquet")
    at = index.schema.get_field_index("volume_key")
    field = index.schema.field(at)
    names = pa.array([f"group {number}" for number in group], field.type)
    pq.write_table(index.set_column(at, field, names), options.out / "index.parquet")


if __name__ == "__main__":
    main()
