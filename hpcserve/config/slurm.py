"""SLURM's own options, under SLURM's own names."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.config.option import option
from hpcserve.errors import ConfigError


@dataclass(frozen=True)
class SlurmConfig:
    """What goes into the `#SBATCH` lines; None leaves the line out, so the site's default holds."""

    account: str | None = option(None, "--account", "-A", help="account to charge")
    partition: str | None = option(None, "--partition", "-p", help="partition(s), comma-separated")
    qos: str | None = option(None, "--qos", "-q", help="quality of service")
    time: str | None = option(None, "--time", "-t", help="time limit, as SLURM writes it: 4:00:00")
    nodes: int | None = option(None, "--nodes", "-N", help="nodes; default: inferred")
    job_name: str | None = option(
        None, "--job-name", "-J", help="name of the job; default: hpcserve-MODEL"
    )
    constraint: str | None = option(None, "--constraint", "-C", help="node features")
    nodelist: str | None = option(None, "--nodelist", "-w", help="only these nodes")
    exclude: str | None = option(None, "--exclude", "-x", help="none of these nodes")
    cpus_per_task: int | None = option(
        None, "--cpus-per-task", "-c", help="CPU cores per node (one task runs on each)"
    )
    dependency: str | None = option(None, "--dependency", "-d", help="start after other jobs")
    gpus_per_node: int | None = option(
        None, "--gpus-per-node", help="GPUs on each node; default: inferred from tp, pp and dp"
    )
    gres: str | None = option(None, "--gres", help="generic resources; replaces --gpus-per-node")
    mem: str | None = option(None, "--mem", help="memory per node; 0 is all of it")
    exclusive: bool | None = option(
        None, "--exclusive", off_flags=("--no-exclusive",), help="whole nodes"
    )
    reservation: str | None = option(None, "--reservation", help="reservation to run in")
    switches: str | None = option(None, "--switches", help="most leaf switches, as COUNT[@WAIT]")
    segment: int | None = option(None, "--segment", help="nodes per block of the topology")
    signal: str | None = option(
        None, "--signal", help="early warning; default: B:USR1 ahead of the drain"
    )
    requeue: bool | None = option(
        None,
        "--requeue",
        off_flags=("--no-requeue",),
        help="let SLURM start the job again after preemption or a node's failure",
    )
    mail_type: str | None = option(None, "--mail-type", help="events to mail about")
    mail_user: str | None = option(None, "--mail-user", help="who gets the mail")
    comment: str | None = option(None, "--comment", help="comment kept with the job")
    sbatch: tuple[str, ...] = option(
        (), "--sbatch", help="any other option of sbatch, as KEY or KEY=VALUE", metavar="KEY=VALUE"
    )
    srun: tuple[str, ...] = option(
        (), "--srun", help="any other option of srun, as KEY or KEY=VALUE", metavar="KEY=VALUE"
    )

    def __post_init__(self) -> None:
        for name in ("nodes", "cpus_per_task", "segment"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.gpus_per_node is not None and self.gpus_per_node < 0:
            raise ConfigError(f"gpus_per_node is {self.gpus_per_node}; it cannot be negative")
        for key in (*self.sbatch, *self.srun):
            if not key.lstrip("-").partition("=")[0]:
                raise ConfigError(f"{key!r} is not of the form KEY or KEY=VALUE")


#: Fields that become one `#SBATCH --name=value` line each, in this order.
DIRECTIVES = (
    "job_name",
    "account",
    "partition",
    "qos",
    "time",
    "nodes",
    "gpus_per_node",
    "gres",
    "cpus_per_task",
    "mem",
    "exclusive",
    "constraint",
    "nodelist",
    "exclude",
    "reservation",
    "dependency",
    "switches",
    "segment",
    "signal",
    "requeue",
    "mail_type",
    "mail_user",
    "comment",
)

#: sbatch reads these itself and lets them win over `#SBATCH` lines; so we read them first.
SBATCH_VARIABLES = {
    "account": "SBATCH_ACCOUNT",
    "partition": "SBATCH_PARTITION",
    "qos": "SBATCH_QOS",
    "time": "SBATCH_TIMELIMIT",
    "job_name": "SBATCH_JOB_NAME",
    "constraint": "SBATCH_CONSTRAINT",
    "exclusive": "SBATCH_EXCLUSIVE",
    "reservation": "SBATCH_RESERVATION",
    "gpus_per_node": "SBATCH_GPUS_PER_NODE",
    "gres": "SBATCH_GRES",
    "mem": "SBATCH_MEM_PER_NODE",
    "signal": "SBATCH_SIGNAL",
}
