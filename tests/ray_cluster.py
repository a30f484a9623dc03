"""A Ray of its own for a test, whose metrics are scraped at a known port: prints its address, waits for its stdin."""

import os
import sys

import ray

from tests.forked_workers import forked_workers

if __name__ == "__main__":
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine takes longer than 30,
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # and this is a part of it
    with forked_workers():
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=200 << 20,
            log_to_driver=False,
            _metrics_export_port=int(sys.argv[1]),
            _system_config={"metrics_report_interval_ms": 1000},
        )
        print(ray.get_runtime_context().gcs_address, flush=True)
        sys.stdin.read()
