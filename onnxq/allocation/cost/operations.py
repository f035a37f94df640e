"""Work of a sample: bit operations, and energy by a table."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from onnxq.config import FLOAT_BITS
from onnxq.config.bit_widths import Candidate
from onnxq.errors import ConfigError

BUNDLED = "energy_45nm.toml"


@dataclass(frozen=True)
class EnergyTable:
    """Energy of elementary steps, picojoules.

    Attributes:
        source: where the numbers come from.
        multiply_integer: of two 8-bit integers; others in proportion to the product of their bits.
        accumulate_integer: adding an integer product to its sum.
        multiply_float: of two float32.
        accumulate_float: adding a float product.
        weight_bit: reading one bit of a weight, once a sample.
    """

    source: str
    multiply_integer: float
    accumulate_integer: float
    multiply_float: float
    accumulate_float: float
    weight_bit: float

    def of(self, macs: float, weights: int, bits: Candidate) -> float:
        """Energy of a layer for one sample.

        Args:
            macs: multiply-accumulate operations.
            weights: how many it holds.
            bits: of weights and input; an input in float makes the products float.
        """
        read = weights * bits.weights * self.weight_bit
        if bits.activations == FLOAT_BITS:
            return macs * (self.multiply_float + self.accumulate_float) + read
        product = self.multiply_integer * bits.weights * bits.activations / 64
        return macs * (product + self.accumulate_integer) + read


def bit_operations(macs: float, bits: Candidate) -> float:
    """Multiplications × weight bits × activation bits; 32 bits where a side is float."""
    return macs * bits.weights * bits.activations


def read_energy(path: Path | None = None) -> EnergyTable:
    """An energy table from a TOML file, the bundled one when None.

    Raises:
        ConfigError: it cannot be read, or keys are missing, unknown or no numbers that are not negative.
    """
    name = str(path or BUNDLED)
    try:
        text = (
            (files("onnxq.allocation.cost") / BUNDLED).read_text() if path is None else path.read_text(encoding="utf-8")
        )
        values = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"energy table {name} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"energy table {name} is not TOML: {error}.") from error
    wanted = [f.name for f in fields(EnergyTable)]
    numbers = [k for k in wanted if k != "source"]
    wrong = [k for k in numbers if not _is_energy(values.get(k))]
    foreign = sorted(set(values) - set(wanted))
    if wrong or foreign or not isinstance(values.get("source"), str):
        raise ConfigError(
            f"energy table {name} does not hold what is needed: source (a sentence) and {', '.join(numbers)} "
            f"(picojoules, not negative), nothing else; look at {', '.join([*wrong, *foreign]) or 'source'}."
        )
    return EnergyTable(**values)


def _is_energy(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
