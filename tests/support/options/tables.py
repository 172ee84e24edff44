"""The rows of the commands over manifests: merge, filter, dedupe, split, stats, export, import."""

from __future__ import annotations

from types import SimpleNamespace

from support.options import Command, Row

_CHECK = ("javisc.manifests.outputs:check_output",)


def _view(target: str, *, needs_out: bool = False) -> dict[str, Row]:
    """The options of every command that writes a view; `target` is the function that gets them."""
    out = Row("--out {folder}/other", f"{target}.out", "{folder}/other", alone=("--out",) if needs_out else ())
    more = "" if needs_out else "--out {folder}/view"
    return {
        "--out": out,
        "--relative": Row("--relative", f"{target}.relative", True),
        "--force": Row("--force", "check_output.force", True, more=more),
    }


#: The bounds, each with a value of its own, so that none can be taken for another.
BOUNDS: dict[str, float] = {
    "min-frames": 11, "max-frames": 402, "min-seconds": 1.3, "max-seconds": 14.4, "min-fps": 23.5, "max-fps": 30.6,
    "min-resolution": 707, "max-resolution": 920808, "min-height": 109, "min-width": 110, "min-aspect": 0.511,
    "max-aspect": 1.212, "min-loudness": -41.3, "max-loudness": -11.4, "min-bandwidth": 2015, "max-silence": 0.516,
    "max-clipping": 0.017, "max-still": 0.618, "max-black": 0.719, "max-cuts": 20, "min-motion": 0.021,
}  # fmt: skip

_DEDUPED = SimpleNamespace(lines=[], kept=1, rows=2)
COMMANDS: dict[str, Command] = {
    "render": Command(
        "render A --short-side 240",
        {
            "javisc.compiler.fields.render:render": SimpleNamespace(
                name="r", samples=1, of=2, smaller=1, broken=0, bytes=10, made_from="clips"
            )
        },
        {
            "DATASET": Row("B", "render.dataset", "B", alone=("A",)),
            "--short-side": Row("--short-side 96", "render.short_side", 96, alone=("--short-side",)),
            "--crf": Row("--crf 20.5", "render.crf", 20.5),
            "--as": Row("--as small", "render.name", "small"),
            "--from": Row("--from clips", "render.made_from", "clips"),
            "--workers": Row("--workers 3", "render.workers", 3),
            "--engine": Row("--engine ray", "render.engine", "ray"),
            "--address": Row("--address local", "render.address", "local"),
        },
    ),
    "annotate": Command(
        "annotate A {table}",
        {
            "javisc.compiler.fields.annotate:annotate": SimpleNamespace(
                name="n", samples=1, of=2, by="key", unused=0, columns=("text",)
            ),
            "javisc.compiler.fields.annotate:take_back": None,
        },
        {
            "DATASET": Row("B {table}", "annotate.dataset", "B", alone=("A", "{table}")),
            "TABLE": Row("B.csv", "annotate.table", "B.csv", alone=("{table}",)),
            "--by": Row("--by", "annotate.by"),
            "--as": Row("--as qwen", "annotate.name", "qwen"),
            "--keep-text": Row("--keep-text", "annotate.keep_text", True),
            "--undo": Row("--undo qwen", "take_back.name", "qwen", alone=("{table}",)),
        },
    ),
    "merge": Command(
        "merge A B --out {folder}/view",
        {"javisc.manifests.merge:merge": SimpleNamespace(rows=2, repeated=0)},
        {
            "INPUTS": Row("C", "merge.paths", ("A", "B", "C")),
            "--on-duplicate": Row("--on-duplicate", "merge.on_duplicate"),
            **_view("merge", needs_out=True),
        },
        _CHECK,
    ),
    "filter": Command(
        "filter A",
        {"javisc.manifests.filters:filter_table": SimpleNamespace(removed=[], kept=1, rows=2)},
        {
            "SOURCE": Row("B", "filter_table.source", "B", alone=("A",)),
            "EXPRESSIONS": Row("fps>3 motion>0", "filter_table.expressions", ("fps>3", "motion>0")),
            **{
                f"--{name}": Row(f"--{name} {value}", "filter_table.bounds", {name: value})
                for name, value in BOUNDS.items()
            },
            "--no-silent": Row("--no-silent", "filter_table.flags", ["no-silent"]),
            "--no-still": Row("--no-still", "filter_table.flags", ["no-still"]),
            "--lang": Row("--lang de --lang fr", "filter_table.choices", {"lang": ["de", "fr"]}),
            "--corpus": Row("--corpus a --corpus b", "filter_table.choices", {"corpus": ["a", "b"]}),
            "--split": Row("--split val", "filter_table.choices", {"split": ["val"]}),
            **_view("filter_table"),
        },
        _CHECK,
    ),
    "dedupe": Command(
        "dedupe A",
        {"javisc.compiler.dedupe.repeats:dedupe": _DEDUPED},
        {
            "INPUTS": Row("B", "dedupe.inputs", ("A", "B")),
            "--near": Row("--near PRINTS", "dedupe.near", "PRINTS"),
            "--match": Row("--match", "dedupe.match"),
            "--rule": Row("--rule", "dedupe.rule"),
            "--groups": Row("--groups G.parquet", "dedupe.groups", "G.parquet"),
            "--workers": Row("--workers 3", "dedupe.workers", 3),
            **_view("dedupe"),
        },
        _CHECK,
    ),
    "split": Command(
        "split {ds} --out {folder}/view",
        {},
        {
            "INPUTS": Row("{ds2}", "write_view.made_by.inputs", ["{ds}", "{ds2}"]),
            "--ratios": Row("--ratios a=0.3,b=0.7", "assign.ratios", {"a": 0.3, "b": 0.7}),
            "--by": Row("--by corpus", "assign.by", "corpus"),
            "--seed": Row("--seed 4", "assign.seed", 4),
            **_view("write_view", needs_out=True),
        },
        (*_CHECK, "javisc.manifests.splits:assign", "javisc.manifests.splits:write_view"),
    ),
    "stats": Command(
        "stats {ds}",
        {},
        {
            "INPUTS": Row("{ds2}", "scan_many.paths", ("{ds}", "{ds2}")),
            "--by": Row("--by lang --by split", "totals.by", ["lang", "split"]),
            "--json": Row("--json", "said", lambda said: said.lstrip().startswith("{")),
        },
        ("javisc.manifests.io:scan_many", "javisc.manifests.stats:totals"),
    ),
    "export": Command(
        "export {ds} --csv {folder}/a.csv",
        {
            "javisc.manifests.exports:export_jsonl": SimpleNamespace(
                rows=1, files=1, without_media=0, without_caption=0, without_unpaired=0, windows=0
            ),
            "javisc.manifests.exports:write_card": "DS/README.md",
            "javisc.manifests.energon:export_energon": {"train": 1},
            "javisc.manifests.javisdit:export_csv": SimpleNamespace(
                rows=1, files=1, without_media=0, without_caption=0, without_unpaired=0, windows=0
            ),
        },
        {
            "INPUTS": Row("{ds2}", "scan_many.paths", ("{ds}", "{ds2}")),
            "--csv": Row("--csv {folder}/b.csv", "export_csv.out", "{folder}/b.csv", alone=("--csv",)),
            "--jsonl": Row("--jsonl {folder}/b.jsonl", "export_jsonl.out", "{folder}/b.jsonl", alone=("--csv",)),
            "--card": Row("--card", "write_card.path", "{ds}", alone=("--csv",)),
            "--energon": Row("--energon {folder}/energon", "export_energon.out", "{folder}/energon", alone=("--csv",)),
            "--javisdit": Row("--javisdit", "export_csv.version"),
            "--kind": Row("--kind", "export_csv.kind"),
            "--media": Row("--media MEDIA", "export_csv.media", "MEDIA"),
            "--audio-format": Row("--audio-format", "export_csv.audio_format"),
            "--allow-no-caption": Row("--allow-no-caption", "export_csv.allow_no_caption", True),
        },
        ("javisc.manifests.io:scan_many",),
    ),
    "import": Command(
        "import --csv A.csv --out {folder}/list.parquet",
        {"javisc.manifests.javisdit:import_csv": 3},
        {
            "--csv": Row("--csv B.csv", "import_csv.paths", ("A.csv", "B.csv")),
            "--out": Row("--out {folder}/b.parquet", "import_csv.out", "{folder}/b.parquet", alone=("--out",)),
            "--root": Row("--root ROOT", "import_csv.root", "ROOT"),
        },
    ),
}
