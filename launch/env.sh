# Every setting of the network and the libraries, for all scripts here and nowhere else. What is set already is left as it is.

# Compute nodes have no network; models and data are local paths.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
export TOKENIZERS_PARALLELISM=false

# How long ranks wait for each other at the start (seconds), and for a collective that hangs (minutes). A rank that dies is noticed
# within a minute whatever this is.
export IFT_SCALE_JOIN_SECONDS=${IFT_SCALE_JOIN_SECONDS:-300}
export DEEPSPEED_TIMEOUT=${DEEPSPEED_TIMEOUT:-30}

# NCCL finds InfiniBand and NVLink by itself. Where it takes a wrong interface, name the right one (`ip -br address`):
#   export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
#   export NCCL_IB_HCA=mlx5_0,mlx5_1
# To see what it does: export NCCL_DEBUG=INFO
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}

# Compiled kernels and operators are kept on the node's own disk: on a shared one all nodes would write the same files.
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-${TMPDIR:-/tmp}/triton-$(id -u)}
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-${TMPDIR:-/tmp}/torch-extensions-$(id -u)}
