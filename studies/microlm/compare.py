"""How far is a student from its teacher on held-out text, and is it right as often as it is confident?

    python -m studies.microlm.compare --model=out/student --teacher=out/teacher --dataset=data/mine

Prints one JSON object: means over `rows` fixed rows of the validation split, the last three over all of it.

    forward_kl    KL(teacher || model), nats; reverse_kl: KL(model || teacher)
    entropy       of the model, nats; teacher_entropy likewise
    agree         share of positions where both have the same likeliest token
    ece           expected calibration error of the model (studies/calibration.py); confidence, accuracy
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure  # isort: split

import json

import torch

from common.data import TokenData
from common.pretrained import check_fits, find_model, load_pretrained
from common.runtime import Runtime
from common.tokenizer import check_same_tokenizer
from head import COMPARED, compare
from losses import Objective
from studies.calibration import calibration_error, confidences


@torch.no_grad()
def distances(student, other, data: TokenData, n_rows: int, run: Runtime) -> dict[str, float]:
    """Means over rows of the split, at temperature 1, of the figures that COMPARED names."""
    sums = dict.fromkeys(COMPARED, 0.0)
    n_tokens = 0
    for x, y in data.eval_batches(n_rows):
        x, y = run.to_device(x, y)
        with run.autocast():
            student_head = (student(x, hidden=True), student.lm_head.weight)
            other_head = (other(x, hidden=True), other.lm_head.weight)
        added = compare(student_head, [other_head], y, Objective(), vocab_size=data.vocab_size, dtype=run.dtype)
        for name in COMPARED:
            sums[name] += added[name].item()
        n_tokens += (y >= 0).sum().item()
    return {name: total / n_tokens for name, total in sums.items()}


def main():
    run = Runtime(device, dtype)
    data = TokenData(dataset, "val", block_size, seed=0, batch_size=batch_size, random_offset=False)
    nets = []
    for name in (model, teacher):
        check_same_tokenizer(dataset, find_model(name))
        net = load_pretrained(name, run.device, torch.float32).eval()
        check_fits(net, name, block_size, data.vocab_size)
        nets.append(net)
    result = distances(*nets, data, rows, run)
    confidence, is_right = confidences(nets[0], data, run)
    result |= {
        "ece": calibration_error(confidence, is_right),
        "confidence": confidence.mean().item(),
        "accuracy": is_right.float().mean().item(),
    }
    print(json.dumps(result))
    run.close()


if __name__ == "__main__":
    model = ""  # model folder or a run's out_dir
    teacher = ""  # likewise
    dataset = "data/stdlib"  # folder with val.bin and meta.json
    rows = 256  # compared with the teacher; 0: all
    block_size = 128  # tokens in a row
    batch_size = 32  # rows a forward
    device = "auto"  # "auto", "cpu" or "cuda"
    dtype = "auto"  # of the matmuls: bfloat16 on a GPU that has it, else float32
    config = configure(globals())
    at_least(config, 1, "block_size batch_size")
    at_least(config, 0, "rows")
    main()
