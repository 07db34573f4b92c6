"""The words and limits that results files are written in: the same for whoever writes them and whoever reads them."""

SCHEMA = 1
ITEMSIZES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a number
DTYPES = tuple(ITEMSIZES)
DEVICES = ("cpu", "cuda")
MODES = ("forward", "train")
CLOCKS = ("host", "device")
BOUNDS = ("arithmetic", "memory", "calls")
VERSIONS = ("structures", "torch", "python", "numpy", "pytest_benchmark")
DECIDE = ("python", "torch", "structures", "numpy")  # versions that the losses of one file have in common
DENSE, NARROW = "dense", "dense_narrow"
REMOVED = "removed"  # the control whose layers are taken out
MIX = "+"  # joins the names of a mix of structures, which take turns layer by layer
NEAR = 0.15  # how far, relatively, a share of dense may be from the budget that it is compared at
