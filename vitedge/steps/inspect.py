"""What a model or a run is made of, as tables: widths, parameters and MACs a layer, operators, artifacts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vitedge import documents
from vitedge.bundle import Bundle
from vitedge.manifest import Facts
from vitedge.tables import Cell, Table, read_tables
from vitedge.vit.block import BlockConfig
from vitedge.vit.config import ViTConfig
from vitedge.vit.geometry import STRIDE
from vitedge.vit.macs import (
    attention_macs,
    block_params,
    head_macs,
    merge_macs,
    mlp_macs,
    model_macs,
    model_params,
    patch_macs,
    patch_params,
    pool_macs,
    pool_params,
    pre_macs,
    stage_macs,
    stage_params,
)

if TYPE_CHECKING:
    from vitedge.sections import SourceSection


@dataclass(frozen=True)
class Inspection:
    """The architecture's configuration, and the tables by their names."""

    model: ViTConfig
    tables: dict[str, Table]

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return {"model": self.model.to_dict(), "tables": {name: table.to_dict() for name, table in self.tables.items()}}


def inspect_model(options: SourceSection) -> Inspection:
    """A model that is no run."""
    from vitedge.vit.checkpoint import load_model

    # The shapes don't depend on the preprocessing, so a lone checkpoint needs none to be inspected.
    given = options.model_dump(exclude={"model", "verify"}) | {"preprocess": options.preprocess or "imagenet"}
    loaded = load_model(options.model, **given)
    table = layer_table(loaded.model.config, None)
    # That it overrides what came with the model says nothing where nobody gave it.
    told = [one for one in loaded.warnings if options.preprocess or not one.startswith("--preprocess ")]
    notes = " ".join(f"{note[0].upper()}{note[1:]}." for note in (*loaded.notes, *told))
    return Inspection(loaded.model.config, {"Layers": replace(table, note=f"{table.note} {notes}".strip())})


def inspect_run(bundle: Bundle) -> Inspection:
    """A run: its layers, graphs and artifacts, and the vendors' estimates."""
    before, after = (
        ViTConfig.from_dict(documents.parse_json(bundle.read(f"{name}/arch.json"), f"{name}/arch.json"))
        for name in ("source", "model")
    )
    tables = {"Layers": layer_table(after, before)}
    graphs = {name: facts for name, facts in bundle.facts("export").items() if name.endswith(".onnx")}
    if graphs:
        tables["Graphs"] = graph_table(graphs, bundle.facts("import").get("macs"))
        tables["Operators"] = operator_table({n: f["operators"] for n, f in graphs.items()})
    for path in bundle.files("analysis/80-"):
        tables |= {table.title: table for table in read_tables(bundle.read(path))}
    rows: list[list[Cell]] = [
        [name, entry.bytes / 2**20, entry.step, entry.sha256[:12]]
        for name, entry in sorted(bundle.manifest.artifacts.items())
    ]
    columns = ["file", "size (MiB)", "made by", "sha256"]
    tables["Artifacts"] = Table("Artifacts", columns, rows, decimals={"size (MiB)": 2})
    return Inspection(after, tables)


def layer_table(config: ViTConfig, before: ViTConfig | None) -> Table:
    """One row a layer: widths (before and after where they differ), shapes, parameters, MACs."""
    w, n = config.width, config.tokens
    rows: list[list[Any]] = []
    for placed in config.stem_layers():
        output = f"[{placed.layer.channels}, {placed.size[0]}, {placed.size[1]}]"
        rows.append([placed.layer.unit, str(placed.layer), output, placed.params, placed.macs / 1e6])
    if config.stem is None:
        patch = f"{config.patch_size}x{config.patch_size}"
        rows.append(["patch_embed", patch, f"[{config.patches}, {w}]", patch_params(config), patch_macs(config) / 1e6])
    if config.pre_linear:
        rows.append(["pre", f"{w} of {w}", f"[{n}, {w}]", w * w + w, pre_macs(config) / 1e6])
    for i, block in enumerate(config.blocks):
        w = config.block_width(i)
        if block.stage:
            patches, side = config.block_tokens(i).mlp, block.stage.kernel
            made = f"{w} of {side**2 * config.block_width(i - 1)}"
            made += f" ({side}x{side}, stride {STRIDE})" * block.stage.overlaps
            row = [f"block{i}.downsample", made, f"[{patches}, {w}]", stage_params(config, i)]
            rows.append([*row, stage_macs(config, i) / 1e6])
        old = before.blocks[i] if before is not None and len(before.blocks) == len(config.blocks) else block
        attention = f"{_change(old.heads, block.heads)} heads of {_change(old.qk_dim, block.qk_dim)}"
        if block.v_dim != block.qk_dim:
            attention += f" (v {block.v_dim})"
        tokens = config.block_tokens(i)
        if block.window:
            high, wide = block.window.size
            attention += f" in windows of {high}x{wide}" + (", moved" * any(block.window.moved(config.block_grid(i))))
        if block.reduction:
            high, wide = block.reduction.left(config.block_grid(i))
            attention += f", keys and values of {high}x{wide}" + " pooled" * block.reduction.pooled
        macs = attention_macs(w, block, tokens) / 1e6
        half = block_params(w, _only(block, mlp=False))
        rows.append([f"block{i}.attention", attention, f"[{tokens.queries}, {w}]", half, macs])
        if block.merge:
            how = f"{tokens.queries} -> {block.merge.left} tokens, {'matched' if block.merge.matched else 'constant'}"
            rows.append([f"block{i}.merge", how, f"[{tokens.mlp}, {w}]", 0, merge_macs(config, i) / 1e6])
        units = f"{_change(old.hidden, block.hidden)} units"
        if len(block.groups) > 1:
            units += " in groups of " + ", ".join(map(str, block.groups))
        units += ", filtered by 3x3" * block.depthwise
        rest = block_params(w, _only(block, mlp=True))
        rows.append([f"block{i}.mlp", units, f"[{tokens.mlp}, {w}]", rest, mlp_macs(w, block, tokens) / 1e6])
    w = config.last_width
    if config.pool_block is not None:
        pool = f"{config.pool_block.heads} heads, {config.pool_block.hidden} units"
        rows.append(["pool", pool, f"[1, {w}]", pool_params(config), pool_macs(config) / 1e6])
    of = "dims" if config.activation == "none" else "classes"
    for name in config.heads():
        size = w * config.classes + config.classes
        rows.append([name, f"{config.classes} {of}", f"[{config.classes}]", size, head_macs(config) / 1e6])
    rows.append(["total", None, None, model_params(config), model_macs(config) / 1e6])
    note = "MACs as exported: a block computes only the tokens that are needed after it."
    if config.stem is not None:
        note += " Quantisation leaves the convolutions before block0 in float, unless quantize.stem is int8."
    if any(block.depthwise for block in config.blocks):
        note += " Depthwise convolutions (filtered by 3x3) are in INT8 with the preset full alone."
    columns = ["layer", "widths", "output", "parameters", "MACs (M)"]
    return Table("Layers", columns, rows, note, decimals={"MACs (M)": 2})


def _only(block: BlockConfig, *, mlp: bool) -> BlockConfig:
    return replace(block, heads=0) if mlp else replace(block, hidden=0, groups=())


def _change(old: int, new: int) -> str:
    return str(new) if old == new else f"{old} -> {new}"


def graph_table(graphs: Facts, dense: int | None = None) -> Table:
    """One row a graph: MACs as exported and the share removed of the `dense` model's, parameters, how near it is to
    PyTorch."""
    rows: list[list[Cell]] = [
        [
            *(n, f["macs"] / 1e6, 100 * (1 - f["macs"] / dense) if dense else None),
            *(f["params"], f["logit_difference"], f["agreement"]),
        ]
        for n, f in graphs.items()
    ]
    columns = ["graph", "MACs (M)", "removed (%)", "parameters"]
    columns += ["largest logit difference", "agreement with its PyTorch model"]
    return Table("Graphs", columns, rows, decimals={"removed (%)": 1})


def operator_table(graphs: dict[str, dict[str, int]]) -> Table:
    """One row an operator, one column a graph."""
    total: Counter[str] = Counter()
    for counts in graphs.values():
        total.update(counts)
    rows: list[list[Cell]] = [[op, *(counts.get(op, 0) for counts in graphs.values())] for op, _ in total.most_common()]
    return Table("Operators", ["operator", *graphs], rows)
