"""The words and limits that results files are written in: the same for whoever writes them and whoever reads them."""

SCHEMA = 1
DTYPES = ("float64", "float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")
MODES = ("forward", "train")
CLOCKS = ("host", "device")
BOUNDS = ("arithmetic", "memory", "calls")
VERSIONS = ("structures", "torch", "python", "numpy", "pytest_benchmark")
DECIDE = ("python", "torch", "structures", "numpy")  # versions that the losses of one file have in common
DENSE, NARROW = "dense", "dense_narrow"
REMOVED = "removed"  # the control whose layers are taken out
BFLOAT16, INT8_DYNAMIC, INT8_WEIGHTS = "dense_bfloat16", "dense_int8_dynamic", "dense_int8_weights"
FLOAT8 = "dense_float8"
RIVALS = {  # of structures that no registry has: dense layers that are smaller or in fewer bits, by their names in rows
    NARROW: "both widths narrowed alike, to multiples of 8",
    BFLOAT16: "weights, inputs and outputs in bfloat16",
    INT8_DYNAMIC: "weights in int8, inputs rounded to int8 in each call",
    INT8_WEIGHTS: "weights in int8 with a scale for each row, inputs as they are",
    FLOAT8: "on CUDA: weights in float8 with a scale for each row, inputs rounded to float8 in each call",
}
FEWER_BITS = (BFLOAT16, INT8_DYNAMIC, INT8_WEIGHTS)  # those that every CPU runs
MIX = "+"  # joins the names of a mix of structures, which take turns layer by layer
NEAR = 0.15  # how far, relatively, a share of dense may be from the budget that it is compared at
