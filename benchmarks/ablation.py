"""What every ingredient of the method is worth: one row a network and variant.

    python benchmarks/ablation.py                                 the bundled network
    python benchmarks/ablation.py --assets DIR [--cases a,b]      networks described by DIR/cases.py
    ... --bits w4a4 --variants light,advanced --samples 512 --out ablation

DIR/cases.py is that of ``accuracy.py``. Each variant adds to or takes from its neighbours, so that each
ingredient's worth is the difference of two rows.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import record
from accuracy import Row, chosen_networks, measure

NO_CHANGES = {"mixtures": 0.0, "mirrored": 0.0, "shift": 0.0}
ONLY_REFINED: dict[str, Any] = {"preset": "advanced", "tune": False}
ONLY_TUNED: dict[str, Any] = {"preset": "advanced"}
ONLY_BLOCKS: dict[str, Any] = {"preset": "advanced", "refine": False, "tune": False, "reconstruct": True}

VARIANTS: dict[str, dict[str, Any]] = {
    "nearest": {"second_order": False, "equalise": False},
    "nearest, para-normalised": {"second_order": False, "equalise": False, "para_normalise": True},
    "nearest, equalised": {"second_order": False},
    "nearest, equalised, para-normalised": {"second_order": False, "para_normalise": True},
    "light, parallel": {"mode": "parallel"},
    "light, not equalised": {"equalise": False},
    "light, every row alike": {"bounded_influence": False},
    "light": {},
    "light, para-normalised": {"para_normalise": True},
    "light, refined in parallel": {**ONLY_REFINED, "mode": "parallel"},
    "light, refined": ONLY_REFINED,
    "light, refined from nearest": {**ONLY_REFINED, "second_order": False},
    "light, refined, weights fixed": {**ONLY_REFINED, "refinement": {"learn_weights": False}},
    "light, refined, scales fixed": {**ONLY_REFINED, "refinement": {"learn_scales": False}},
    "light, refined, input fixed": {**ONLY_REFINED, "refinement": {"learn_input": False}},
    "light, refined, half of the input unquantised": {**ONLY_REFINED, "refinement": {"mixing": 0.5}},
    "light, blocks": ONLY_BLOCKS,
    "advanced, samples unchanged": {**ONLY_TUNED, "tuning": NO_CHANGES},
    "advanced, biases alone": {
        **ONLY_TUNED,
        "tuning": {"integer_rate": 0.0, "weight_rate": 0.0, "input_rate": 0.0},
    },
    "advanced, biases and scales alone": {**ONLY_TUNED, "tuning": {"integer_rate": 0.0}},
    "advanced, for the outputs alone": {**ONLY_TUNED, "tuning": {"features": 0.0}},
    "advanced, for divergence": {**ONLY_TUNED, "tuning": {"objective": "kl"}},
    "advanced": ONLY_TUNED,
    "light, refined and tuned": {"preset": "advanced", "refine": True},
    "light, blocks and tuned": {"preset": "advanced", "reconstruct": True},
    "light, para-normalised and tuned": {"preset": "advanced", "para_normalise": True},
}
"""Options of each variant, beside the bits."""

HEAD = ("network", "bits", "variant", "KL, nats", "top-1 float → quantised", "SQNR, dB", "seconds")


def markdown(rows: list[tuple[str, Row]]) -> str:
    """The rows as a table for people."""
    cells = [
        [
            r.network,
            r.bits.upper(),
            variant,
            f"{r.kl:.4f}",
            f"{r.top1_fp32:.2f} → {r.top1:.2f}",
            f"{r.sqnr_db:.1f}",
            f"{r.seconds:.0f}",
        ]
        for variant, r in rows
    ]
    return record.markdown(HEAD, cells)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--cases", default="")
    parser.add_argument("--bits", default="w4a4")
    parser.add_argument("--variants", default=";".join(VARIANTS), help="names with semicolons between")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("ablation"))
    args = parser.parse_args()
    rows: list[tuple[str, Row]] = []
    for network in chosen_networks(args.assets, args.cases):
        for bits in args.bits.split(","):
            for variant in args.variants.split(";"):
                rows.append((variant, measure(network, bits, args.samples, **VARIANTS[variant])))
                table = markdown(rows)
                print(table.splitlines()[-1], flush=True)
                record.write(args.out, [{"variant": v, **asdict(r)} for v, r in rows], table, samples=args.samples)


if __name__ == "__main__":
    main()
