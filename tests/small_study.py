"""A study of two rows, a teacher and a student that learns from its cache, for tests/kills.py: all that a study does,
in a minute. It is run by real scripts.

    python tests/small_study.py FOLDER        # with a data set in FOLDER/data; runs, cache and logs in FOLDER/out
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.one_line import end_in_one_line
from studies.rows import Cache, Row
from studies.runs import Study

CONFIG = """n_layer, n_head, n_embd = 1, 2, 32
block_size, batch_size = 128, 2
max_steps, save_interval, eval_interval, eval_rows, log_interval = 40, 4, 20, 4, 1
random_offset = False
device = "cpu"
"""


def main(folder: Path):
    for name, more in (("teacher", ""), ("student", "weight_ce, weight_kl = 0.5, 0.5\n")):
        (folder / f"{name}.py").write_text(f"dataset = {str(folder / 'data')!r}\n{CONFIG}{more}")
    teacher = Row("a teacher", script="train.py", config=str(folder / "teacher.py"), tuned_as="teacher")
    student = Row(
        "learns from it", script="distill.py", config=str(folder / "student.py"), tuned_as="student", cache="cell"
    )
    arguments = ("--block_size=128", "--batch_size=1", "--eval_rows=4", "--top_k=4", "--device=cpu")
    study = Study(
        rows={"teacher": teacher, "student": student},
        caches={"cell": Cache(teachers=("teacher",), arguments=arguments)},
        data=folder / "data",
        out_dir=str(folder / "out/study"),
        jobs=1,
    )
    # no epochs: as many steps as the config says
    study.settle({"teacher": (1e-2, 0), "student": (1e-2, 0)})
    table = study.run_table(["student", "teacher"], seeds=[0])
    study.publish(folder / "out/logs", table, meta={})


if __name__ == "__main__":
    end_in_one_line()
    main(Path(sys.argv[1]))
