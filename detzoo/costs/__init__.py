"""What detectors cost, side by side."""

# For compiling for TPUs on a machine that has none: to be in the environment before jax is imported. libtpu then asks no
# metadata server, does not complain about its answers, and lets several processes load it at once (it would leave a lock
# file behind and refuse the next one); JAX's own device is the CPU.
TPU_ENVIRONMENT = {
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8',  # of the machine, were it one: not what is compiled for
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}
