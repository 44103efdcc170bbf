"""The highest rates that this GPU reaches: bytes per second of a large copy, operations per second of a large product.

    python -m benchmarks.ceilings [--json FILE] [--dry-run]

Copies count bytes read and bytes written.
"""

from benchmarks import measure
from esim_fast.cli.options import Parser
from esim_fast.files import write_json

COPIED = 2**33 if measure.FULL_SIZE else 2**24  # bytes


def main() -> None:
    parser = Parser(prog="python -m benchmarks.ceilings", description=__doc__.splitlines()[0])
    options = measure.gpu_options(parser)
    copied = measure.copy_bandwidth(COPIED, on_device=True)
    rates = {precision: measure.product_rate(precision) for precision in measure.PRECISIONS}
    print(f"a copy: {copied / 1e9:,.0f} GB/s")
    for precision, rate in rates.items():
        print(f"products in {precision}: {rate / 1e12:,.1f} TFLOP/s")
    if options.json:
        write_json(options.json, {**measure.machine(), "bytes_per_second": copied, "operations_per_second": rates})


if __name__ == "__main__":
    main()
