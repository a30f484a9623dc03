"""temporary by the lead: the clustering stage until the real assign/references are there."""
import hashlib, json, io
import numpy as np, pyarrow as pa, pyarrow.parquet as pq, ray
from curation.clustering.kmeans import default_k, fit_kmeans
from curation.clustering.nearest import nearest
from curation.clustering.points import ActorRows
from curation.storage import Folder
from curation.config import to_dict

def _vec(table):
    col = table["embedding"].combine_chunks()
    return col.flatten().to_numpy().reshape(len(col), -1)

def _load(store, shards):
    return lambda: np.concatenate([_vec(store.read(s, ["embedding"])) for s in shards])

def cluster(config, catalog, workspace, resources):
    mode = config.references_mode()
    name = hashlib.sha256(json.dumps([catalog.store.catalog_id, catalog.artefact.sha256, catalog.digest, catalog.bank_digest, to_dict(config.cluster), mode, config.seed]).encode()).hexdigest()[:16]
    folder = workspace.child(f"clusters/{name}")
    if folder.exists("fit.json"):
        return folder
    store, n = catalog.store, catalog.counts["kept"]
    k = min(config.cluster.k or default_k(n), n)
    init, scene, share = None, [], []
    if mode != "none":
        bank = pa.concat_tables([store.read(s, ["embedding", "label"]) for s in catalog.bank])
        x = _vec(bank).astype(np.float32); labels = np.array(bank["label"].to_pylist())
        class One:
            rows = len(x)
            def head(self, rows): return x
            def sums(self, c, s):
                from curation.clustering.points import Sums
                from curation.clustering.nearest import Nearest
                t = Sums.zero(*c.shape); t.add_points(x, *Nearest(c).two(x)); return t
        kr = max(1, min(k, len(x) // 3))
        init = fit_kmeans(One(), kr, config.seed).centroids
    shards = list(catalog.shards)
    if mode == "frozen":
        cents = init
    else:
        cents = fit_kmeans(ActorRows([_load(store, shards[i::8]) for i in range(min(8, len(shards)))], config.seed, 1), k, config.seed, init=init).centroids
    scene = [None] * len(cents); share = [None] * len(cents)
    if mode != "none":
        lab, _ = nearest(x, cents)
        for c in range(len(cents)):
            here = labels[lab == c]
            if len(here):
                v, m = np.unique(here.astype(str), return_counts=True); scene[c] = str(v[m.argmax()]); share[c] = float(m.max() / m.sum())
    rows = []
    for s in shards:
        t = store.read(s, ["sample_id", "shard", "index", "embedding"]); l, d = nearest(_vec(t), cents)
        rows.append(t.drop(["embedding"]).append_column("cluster", pa.array(l, pa.int32())).append_column("distance", pa.array(d, pa.float32())))
    t = pa.concat_tables(rows).combine_chunks()
    l, d = t["cluster"].to_numpy(), t["distance"].to_numpy()
    size = np.bincount(l, minlength=len(cents)); mean = np.bincount(l, d, len(cents)) / np.maximum(size, 1)
    std = np.sqrt(np.maximum(np.bincount(l, d.astype(float) ** 2, len(cents)) / np.maximum(size, 1) - mean**2, 0))
    g = cents @ cents.T; nb = [[int(j) for j in np.argsort(-g[i], kind="stable") if j != i][:8] for i in range(len(cents))]
    ct = pa.table({"cluster": pa.array(range(len(cents)), pa.int32()), "kind": ["reference" if init is not None and i < len(init) else "free" for i in range(len(cents))],
        "scene": pa.array(scene, pa.string()), "scene_share": pa.array(share, pa.float32()), "size": pa.array(size, pa.int64()), "distance_mean": pa.array(mean, pa.float32()),
        "distance_std": pa.array(std, pa.float32()), "neighbours": pa.array(nb, pa.list_(pa.int32())), "centroid": pa.array(list(cents), pa.list_(pa.float32()))})
    def put(path, table):
        b = io.BytesIO(); pq.write_table(table, b); folder.publish(path, b.getvalue())
    put("assignments/part-00000.parquet", t); put("centroids.parquet", ct)
    folder.publish("fit.json", json.dumps({"n": n, "k": len(cents)}).encode())
    return folder
