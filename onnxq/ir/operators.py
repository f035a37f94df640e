"""What each ONNX operator does to values: the one table that passes, plans and emitters derive their sets from.

An entry states facts about an operator as a rule; whoever asks still looks at a node's attributes and constants. An
operator without an entry has no trait, so whatever it makes counts as computed in a way not known. :mod:`onnxq.verify`
keeps lists of its own, because it judges what was made with these.
"""

from __future__ import annotations

from enum import Flag, auto
from functools import cache


class Trait(Flag):
    """A fact about an operator; ``|`` combines several."""

    MOVES = auto()
    """Every number of its first output is one of its first input's, whichever they are."""
    WHOLE = auto()
    """Its first output holds as many numbers as its first input."""
    REARRANGES = MOVES | WHOLE
    """It moves every number, each to one place."""
    PICKS = auto()
    """Its first output holds the largest numbers of windows of its first input."""
    PARTS = auto()
    """It joins tensors into one or divides one into several; all numbers stay as they are."""
    CONVERTS = auto()
    """It hands the numbers of its first input on in another type."""
    LIMITS = auto()
    """It hands the numbers of an input on within limits."""
    PADS = auto()
    """Its output holds numbers of its first input, and a constant beside them."""
    PASSED = auto()
    """onnxruntime moves a QuantizeLinear or DequantizeLinear past it, or takes it out."""
    ELEMENTWISE = auto()
    """It computes each element of its result from the elements of its operands at the same place."""
    NUMERIC = auto()
    """It computes floating-point numbers of such numbers and does not round them."""
    POINTWISE = ELEMENTWISE | NUMERIC
    """With single numbers as the other operands it is a function of each element of one."""
    AFFINE = auto()
    """With constants as the other operands it scales and shifts each channel of one."""
    HOMOGENEOUS = auto()
    """It keeps channels apart, and a factor s > 0 on a channel of its input is a factor s on that of its result."""
    ONE_SIGNED = auto()
    """For negative factors that is not so."""
    NOT_NEGATIVE = auto()
    """Its results are not negative."""
    KEEPS_SIGN = auto()
    """Its results are not negative where no operand is; so it is of what moves, reduces or averages."""
    STAYS_SMALL = auto()
    """It makes small numbers of small ones; so does all that moves, limits, scales, reduces or averages."""
    STOPS_ZERO = auto()
    """No zero behind it is due to the rounding of its argument."""
    LIMITED = auto()
    """It has no value for arguments beyond a limit."""
    REDUCES = auto()
    """It takes all numbers along some axes together: their sum, product, norm or extreme."""
    AVERAGES = auto()
    """It sums or averages the numbers of windows or of one axis."""
    SPECTRAL = auto()
    """Power spectra are made with it, besides layers and what moves or reduces."""
    SIZES = auto()
    """Its result depends on the sizes of tensors alone."""
    NORMALIZES = auto()
    """It divides numbers by a sum over many."""
    SCALES_ROWS = auto()
    """It multiplies the last axis of its result by its second input, and adds the third if there is one."""
    LAYER = auto()
    """It multiplies its first input with weights."""
    HOLDS_PARAMETERS = auto()
    """Its constants are parameters of a network."""
    ATTENTION = auto()
    """It is an attention block in one."""
    QUANTIZED = auto()
    """It computes with quantized numbers."""
    GRID = auto()
    """It puts numbers on a grid, or takes them off."""
    DRAWS = auto()
    """It draws numbers at random; a Dropout does in training mode."""
    EMPTIES = auto()
    """It can make a tensor without elements of one that has some."""
    BEYOND = auto()
    """onnxruntime has it in the standard domain, at any version of it, whether or not the standard has."""


T = Trait

TABLE: dict[str, Trait] = {
    # moving, joining, selecting
    "Compress": T.MOVES | T.EMPTIES,
    "Concat": T.PARTS,
    "DepthToSpace": T.REARRANGES,
    "Dropout": T.REARRANGES | T.ELEMENTWISE | T.PASSED | T.DRAWS,
    "Expand": T.MOVES,
    "Flatten": T.REARRANGES | T.PASSED,
    "Gather": T.MOVES | T.HOLDS_PARAMETERS,
    "GatherElements": T.MOVES,
    "GatherND": T.MOVES | T.HOLDS_PARAMETERS,
    "Identity": T.REARRANGES | T.ELEMENTWISE | T.PASSED,
    "Reshape": T.REARRANGES | T.PASSED,
    "ReverseSequence": T.REARRANGES,
    "ScatterElements": T.SPECTRAL,
    "ScatterND": T.SPECTRAL,
    "Slice": T.MOVES | T.PASSED | T.EMPTIES,
    "SpaceToDepth": T.REARRANGES,
    "Split": T.PARTS | T.EMPTIES,
    "Squeeze": T.REARRANGES | T.PASSED,
    "Tile": T.MOVES | T.EMPTIES,
    "Transpose": T.REARRANGES | T.PASSED,
    "Unsqueeze": T.REARRANGES | T.PASSED,
    # converting, limiting, padding
    "Cast": T.CONVERTS | T.ELEMENTWISE | T.PASSED,
    "CastLike": T.CONVERTS | T.ELEMENTWISE,
    "CenterCropPad": T.PADS | T.EMPTIES,
    "Clip": T.LIMITS | T.POINTWISE | T.HOMOGENEOUS | T.ONE_SIGNED | T.SPECTRAL,
    "Max": T.LIMITS | T.POINTWISE | T.KEEPS_SIGN | T.SPECTRAL,
    "Min": T.LIMITS | T.POINTWISE | T.KEEPS_SIGN,
    "Pad": T.PADS,
    "Relu": T.LIMITS | T.POINTWISE | T.HOMOGENEOUS | T.ONE_SIGNED | T.NOT_NEGATIVE,
    "Trilu": T.PADS,
    # pooling, resizing
    "AveragePool": T.AVERAGES | T.HOMOGENEOUS,
    "GlobalAveragePool": T.AVERAGES | T.HOMOGENEOUS,
    "GlobalLpPool": T.NOT_NEGATIVE,
    "GlobalMaxPool": T.PICKS | T.HOMOGENEOUS | T.ONE_SIGNED,
    "LpPool": T.NOT_NEGATIVE,
    "MaxPool": T.PICKS | T.HOMOGENEOUS | T.ONE_SIGNED | T.PASSED,
    "Resize": T.HOMOGENEOUS | T.STAYS_SMALL,
    # reducing
    "ArgMax": T.STOPS_ZERO,
    "ArgMin": T.STOPS_ZERO,
    "CumSum": T.AVERAGES,
    "Mean": T.POINTWISE | T.KEEPS_SIGN | T.STAYS_SMALL,
    "ReduceL1": T.REDUCES | T.NOT_NEGATIVE,
    "ReduceL2": T.REDUCES | T.NOT_NEGATIVE,
    "ReduceMax": T.REDUCES,
    "ReduceMean": T.REDUCES | T.HOMOGENEOUS,
    "ReduceMin": T.REDUCES,
    "ReduceProd": T.REDUCES,
    "ReduceSum": T.REDUCES,
    "ReduceSumSquare": T.REDUCES | T.NOT_NEGATIVE,
    "Sum": T.POINTWISE | T.KEEPS_SIGN | T.STAYS_SMALL | T.SPECTRAL,
    "TopK": T.STAYS_SMALL | T.EMPTIES,
    # arithmetic
    "Abs": T.POINTWISE | T.NOT_NEGATIVE | T.STAYS_SMALL | T.SPECTRAL,
    "Add": T.POINTWISE | T.AFFINE | T.HOMOGENEOUS | T.KEEPS_SIGN | T.SPECTRAL | T.HOLDS_PARAMETERS,
    "Ceil": T.ELEMENTWISE | T.STAYS_SMALL,
    "Div": T.POINTWISE | T.AFFINE | T.KEEPS_SIGN | T.SPECTRAL | T.HOLDS_PARAMETERS,
    "Einsum": T.KEEPS_SIGN | T.STAYS_SMALL | T.HOLDS_PARAMETERS,
    "Exp": T.POINTWISE | T.NOT_NEGATIVE | T.STOPS_ZERO,
    "Floor": T.ELEMENTWISE | T.STAYS_SMALL,
    "Log": T.POINTWISE | T.STAYS_SMALL,
    "Mod": T.ELEMENTWISE,
    "Mul": T.POINTWISE | T.AFFINE | T.HOMOGENEOUS | T.KEEPS_SIGN | T.SPECTRAL | T.HOLDS_PARAMETERS,
    "Neg": T.POINTWISE | T.STAYS_SMALL | T.SPECTRAL,
    "Pow": T.POINTWISE | T.STAYS_SMALL | T.SPECTRAL,
    "Reciprocal": T.POINTWISE | T.STAYS_SMALL,
    "Round": T.ELEMENTWISE | T.STAYS_SMALL,
    "Sign": T.ELEMENTWISE | T.STAYS_SMALL,
    "Sqrt": T.POINTWISE | T.NOT_NEGATIVE | T.STAYS_SMALL | T.LIMITED | T.SPECTRAL,
    "Sub": T.POINTWISE | T.AFFINE | T.SPECTRAL | T.HOLDS_PARAMETERS,
    "Where": T.ELEMENTWISE | T.KEEPS_SIGN | T.STAYS_SMALL | T.SPECTRAL,
    # trigonometry
    "Acos": T.POINTWISE | T.NOT_NEGATIVE | T.LIMITED,
    "Acosh": T.POINTWISE | T.NOT_NEGATIVE | T.LIMITED,
    "Asin": T.POINTWISE | T.LIMITED,
    "Asinh": T.POINTWISE,
    "Atan": T.POINTWISE,
    "Atanh": T.POINTWISE | T.LIMITED,
    "Cos": T.POINTWISE | T.SPECTRAL,
    "Cosh": T.POINTWISE | T.NOT_NEGATIVE,
    "DFT": T.SPECTRAL,
    "STFT": T.SPECTRAL,
    "Sin": T.POINTWISE | T.SPECTRAL,
    "Sinh": T.POINTWISE,
    "Tan": T.POINTWISE,
    "Tanh": T.POINTWISE | T.STAYS_SMALL,
    # activation functions
    "Celu": T.POINTWISE,
    "Elu": T.POINTWISE | T.STAYS_SMALL,
    "Erf": T.POINTWISE | T.STAYS_SMALL,
    "Gelu": T.POINTWISE,
    "HardSigmoid": T.POINTWISE | T.NOT_NEGATIVE | T.STAYS_SMALL,
    "HardSwish": T.POINTWISE | T.STOPS_ZERO,
    "Hardmax": T.NORMALIZES | T.NOT_NEGATIVE,
    "LeakyRelu": T.POINTWISE | T.HOMOGENEOUS | T.ONE_SIGNED | T.STAYS_SMALL,
    "LogSoftmax": T.NORMALIZES | T.STOPS_ZERO,
    "Mish": T.POINTWISE,
    "PRelu": T.POINTWISE | T.HOMOGENEOUS | T.ONE_SIGNED | T.STAYS_SMALL | T.HOLDS_PARAMETERS,
    "Selu": T.POINTWISE,
    "Shrink": T.POINTWISE,
    "Sigmoid": T.POINTWISE | T.NOT_NEGATIVE | T.STOPS_ZERO,
    "Softmax": T.NORMALIZES | T.NOT_NEGATIVE | T.STOPS_ZERO,
    "Softplus": T.POINTWISE | T.NOT_NEGATIVE | T.STOPS_ZERO,
    "Softsign": T.POINTWISE,
    "Swish": T.POINTWISE,
    "ThresholdedRelu": T.POINTWISE,
    # truth values, bits
    **dict.fromkeys(("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Or", "Xor"), T.ELEMENTWISE),
    **dict.fromkeys(("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"), T.ELEMENTWISE),
    **dict.fromkeys(("IsInf", "IsNaN", "Not"), T.ELEMENTWISE),
    # layers and normalizations
    "BatchNormalization": T.AFFINE | T.HOLDS_PARAMETERS,
    "Conv": T.LAYER,
    "ConvTranspose": T.LAYER,
    "Gemm": T.LAYER,
    "MatMul": T.LAYER | T.KEEPS_SIGN,
    "GRU": T.HOLDS_PARAMETERS,
    "LSTM": T.HOLDS_PARAMETERS,
    "RNN": T.HOLDS_PARAMETERS,
    "GroupNormalization": T.NORMALIZES | T.HOLDS_PARAMETERS,
    "InstanceNormalization": T.NORMALIZES | T.HOLDS_PARAMETERS,
    "LayerNormalization": T.NORMALIZES | T.SCALES_ROWS | T.HOLDS_PARAMETERS | T.BEYOND,
    "LpNormalization": T.NORMALIZES,
    "MeanVarianceNormalization": T.NORMALIZES,
    "RMSNormalization": T.NORMALIZES | T.SCALES_ROWS | T.HOLDS_PARAMETERS,
    "Attention": T.ATTENTION,
    "LinearAttention": T.ATTENTION,
    # quantized numbers
    **dict.fromkeys(("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"), T.QUANTIZED),
    **dict.fromkeys(("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"), T.GRID),
    # sizes, draws, data-dependent shapes, subgraphs
    "ConstantOfShape": T.SIZES | T.EMPTIES,
    "EyeLike": T.SIZES,
    "Range": T.SIZES | T.EMPTIES,
    "Shape": T.SIZES | T.STOPS_ZERO,
    "Size": T.SIZES | T.STOPS_ZERO,
    **dict.fromkeys(("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"), T.DRAWS),
    **dict.fromkeys(("RandomUniform", "RandomUniformLike"), T.DRAWS),
    **dict.fromkeys(("NonMaxSuppression", "NonZero", "Unique"), T.EMPTIES),
    **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), T.EMPTIES),
    # onnxruntime's own: in the standard domain, and in that of com.microsoft
    **dict.fromkeys(("Affine", "Crop", "DynamicSlice", "GRUUnit", "GivenTensorFill", "ImageScaler"), T.BEYOND),
    **dict.fromkeys(("ParametricSoftplus", "Scale", "ScaledTanh"), T.BEYOND),
    "SimplifiedLayerNormalization": T.NORMALIZES | T.SCALES_ROWS | T.HOLDS_PARAMETERS | T.BEYOND,
    **dict.fromkeys(("GroupQueryAttention", "MultiHeadAttention", "PackedAttention"), T.ATTENTION),
    **dict.fromkeys(("DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"), T.QUANTIZED),
    **dict.fromkeys(("MatMulNBits", "QAttention", "QGemm"), T.QUANTIZED),
}
"""Traits by operator."""

# fmt: off
UNKNOWN = frozenset((
    "AffineGrid", "BitCast", "BlackmanWindow", "CausalConvWithState", "Col2Im", "ConcatFromSequence", "Constant",
    "CumProd", "DeformConv", "Det", "GridSample", "HammingWindow", "HannWindow", "ImageDecoder", "LRN", "MaxRoiPool",
    "MaxUnpool", "MelWeightMatrix", "NegativeLogLikelihoodLoss", "OneHot", "Optional", "OptionalGetElement",
    "OptionalHasElement", "ReduceLogSum", "ReduceLogSumExp", "RegexFullMatch", "RoiAlign", "RotaryEmbedding",
    "Scatter", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert",
    "SequenceLength", "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat", "StringNormalizer",
    "StringSplit", "SwiGLU", "TensorScatter", "TfIdfVectorizer", "Upsample",
))
# fmt: on
"""Operators of the standard that nothing here uses a fact of."""

STANDARD = (None, "", "ai.onnx")
"""Names of the standard domain."""


@cache
def operators_with(*traits: Trait) -> frozenset[str]:
    """Names of the operators that have at least one of some traits, all of a combined one.

    >>> sorted(operators_with(Trait.PARTS))
    ['Concat', 'Split']
    """
    return frozenset(name for name, held in TABLE.items() if any(trait in held for trait in traits))
