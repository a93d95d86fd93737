"""Print the lower bounds of setup.cfg as constraints for pip; ``make test-oldest`` installs them.

They are those of what channelscope needs and of the extras that its users install; a bound of a
tool for tests or development is no promise to anybody.
"""

import re
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).parent.parent
EXTRAS = ("autoattack", "notebooks", "tensorboard", "wandb")


def constraints(setup: str) -> Iterator[str]:
    """Turn each requirement ("numpy>=1.26.4") into its oldest version ("numpy==1.26.4")."""
    config = ConfigParser()
    config.read_string(setup)
    lines = config["options"]["install_requires"].split("\n")
    for extra in EXTRAS:
        lines += config["options.extras_require"][extra].split("\n")
    for line in filter(None, map(str.strip, lines)):
        bound = re.fullmatch(r"([\w.-]+)>=([\d.]+)(,<[\d.]+)?", line)
        if bound is None:
            raise SystemExit(f"setup.cfg: {line!r} has no lower bound.")
        yield f"{bound[1]}=={bound[2]}"


if __name__ == "__main__":
    print("\n".join(constraints((HERE / "setup.cfg").read_text("utf-8"))))
