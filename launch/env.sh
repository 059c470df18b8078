# All settings of the network and the libraries, sourced by every script in this folder. Variables
# that are already set keep their values.

# Compute nodes have no network; models and data are local paths.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
export TOKENIZERS_PARALLELISM=false

# How long ranks wait for each other at the start (seconds) and in a collective that hangs
# (minutes). A rank that dies is noticed within a minute, regardless of these values.
export IFT_SCALE_JOIN_SECONDS=${IFT_SCALE_JOIN_SECONDS:-300}
export DEEPSPEED_TIMEOUT=${DEEPSPEED_TIMEOUT:-30}

# NCCL finds InfiniBand and NVLink automatically. If it selects the wrong interface, set the right
# one (`ip -br address`):
#   export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
#   export NCCL_IB_HCA=mlx5_0,mlx5_1
# For NCCL's log: export NCCL_DEBUG=INFO
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}

# Compiled kernels and operators are stored on the node's own disk. On a shared disk, all nodes
# would write the same files.
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-${TMPDIR:-/tmp}/triton-$(id -u)}
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-${TMPDIR:-/tmp}/torch-extensions-$(id -u)}
