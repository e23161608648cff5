"""Muon: momentum whose matrix is made orthogonal before each step (Keller Jordan, kellerjordan.github.io/posts/muon).

A gradient matrix G = U S V^T has a few large singular values and many small ones. Muon steps along U V^T instead, so
that the directions in which G is small are learnt as well.

torch.optim.Muon computes the same, but always in bfloat16. That is fast on a GPU, but on a CPU without instructions
for it takes 28 to 43 times as long as float32. Matrices of one shape go through the iterations together, which on two
CPU cores takes 7 to 21 % less time than one by one (bench.py --part=muon, results/bench/muon.txt).
"""

import math

import torch

from common.sharding import share_of, whole

# of the quintic iteration; they trade accuracy for speed: singular values end between 0.7 and 1.2, not at 1
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# Three iterations that bring singular values of 0.001 … 1 as near to 1 as three such polynomials can: 0.136 … 1.864.
# Each is the best for the interval in which the one before it ends (Polar Express, arXiv:2505.16932, computed again in
# tests/test_muon.py), plus 1 % at the top: beyond its interval a polynomial is steep, and bfloat16 rounds by 0.4 %.
POLAR_EXPRESS = (
    (8.3869, -24.3713, 17.7264),
    (4.1430, -3.0186, 0.5527),
    (3.9312, -2.8741, 0.5367),
)


class Muon(torch.optim.Optimizer):
    """For the matrices of the blocks; everything else goes to AdamW. Its state is that of torch.optim.Muon.

    params: 2-dimensional, (n_out, n_in) each. Weight decay is decoupled, as AdamW's. The update is scaled so that its
    root mean square is about AdamW's, 0.2, and one learning rate serves both (arXiv:2502.16982, section 2.2).
    """

    def __init__(self, params, lr: float, weight_decay: float, momentum=0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            for same_shape in by_shape(trained):
                self.update(same_shape, group)

    def update(self, params: list[torch.Tensor], group: dict):
        """One step of parameters of one shape, which share their matrix products."""
        momentum = group["momentum"]
        directions = []
        for p in params:
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            # an average of the gradients, and Nesterov's look one step ahead
            average = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
            # gathered, where the ranks divide p: orthogonal shares would not make an orthogonal matrix
            directions.append(whole(p.grad.lerp(average, momentum)))

        n_out, n_in = params[0].shape
        step_size = group["lr"] * 0.2 * math.sqrt(max(n_out, n_in))
        directions = self.orthogonal(torch.stack(directions), group)  # (N, n_out, n_in)
        directions = self.balanced(params, directions)
        for p, direction in zip(params, directions):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(share_of(direction, p), alpha=-step_size)

    def orthogonal(self, directions: torch.Tensor, group: dict) -> torch.Tensor:
        """The directions of parameters of one shape, (N, n_out, n_in), made orthogonal."""
        return orthogonalized(directions)

    def balanced(self, params: list[torch.Tensor], directions: torch.Tensor) -> torch.Tensor:
        """The orthogonal directions unchanged; NorMuon rescales their rows."""
        return directions


class NorMuon(Muon):
    """Muon whose rows, one for each output, take steps of one size (arXiv:2510.05491).

    An orthogonal matrix that is not square has rows of different norms: some neurons would learn faster than others.
    Each row is divided by the root of the running mean of its squares, and the matrix gets its norm back. At small
    scale it beats Muon by 0.057 nats/token, three seeds (LOG.md).
    """

    def __init__(self, params, lr: float, weight_decay: float, momentum=0.95, beta2=0.95, eps=1e-10):
        super().__init__(params, lr, weight_decay, momentum)
        self.beta2 = beta2
        self.eps = eps

    def balanced(self, params: list[torch.Tensor], directions: torch.Tensor) -> torch.Tensor:
        directions = directions.float()
        squares = directions.square().mean(dim=-1, keepdim=True)  # (N, n_out, 1)
        averages = []
        for p, current in zip(params, squares):
            averages.append(self.row_squares(p).lerp_(current, 1 - self.beta2))  # updates the state in place
        balanced = directions / (torch.stack(averages).sqrt() + self.eps)
        # each matrix gets the norm back that it had
        norms = directions.norm(dim=(-2, -1), keepdim=True)  # (N, 1, 1)
        return balanced.mul_(norms / balanced.norm(dim=(-2, -1), keepdim=True).clamp(min=self.eps))

    def row_squares(self, p: torch.Tensor) -> torch.Tensor:
        """The running mean of the squares of each row's step: (n_out, 1), whole on each rank."""
        state = self.state[p]
        if "row_squares" not in state:
            state["row_squares"] = torch.zeros(len(p), 1, device=p.device)
        return state["row_squares"]


class HeadMuon(NorMuon):
    """NorMuon, but attention is made orthogonal head by head, and by three iterations instead of five.

    One head's queries, keys and values have nothing to do with another's. So each head's part of a matrix is made
    orthogonal by itself: that costs a fraction, as a part is flat, and no head learns at another's expense. The three
    iterations are those that lift small singular values most (POLAR_EXPRESS); that they end between 0.14 and 1.86 does
    not matter, as rows are balanced afterwards: the loss is 0.021 nats/token lower than with NorMuon's five (three
    seeds, LOG.md). All in all it takes a third of the time (bench.py --part=muon).

    params: groups as `by_heads` (common/optim.py) makes them. group["heads"]: a head is head_dim "rows" of each matrix
    (queries, keys, values), or head_dim "columns" (attention's output); "": no heads (the MLP).
    """

    def __init__(self, params, lr: float, weight_decay: float, momentum=0.9, beta2=0.95):
        super().__init__(params, lr, weight_decay, momentum, beta2)

    def orthogonal(self, directions: torch.Tensor, group: dict) -> torch.Tensor:
        N, n_out, n_in = directions.shape
        hs = group["head_dim"]
        parts = directions
        if group["heads"] == "rows":
            parts = parts.reshape(-1, hs, n_in)  # (N * heads, hs, n_in)
        elif group["heads"] == "columns":
            parts = parts.unflatten(-1, (-1, hs)).transpose(1, 2)  # (N, heads, n_out, hs)
            parts = parts.flatten(0, 1)  # (N * heads, n_out, hs)
        parts = orthogonalized(parts, coefficients=POLAR_EXPRESS, through_gram=True)
        if group["heads"] == "columns":
            parts = parts.unflatten(0, (N, -1)).transpose(1, 2)  # (N, n_out, heads, hs)
        return parts.reshape(N, n_out, n_in)

    def balanced(self, params: list[torch.Tensor], directions: torch.Tensor) -> torch.Tensor:
        # scaled to the norm of an exactly orthogonal matrix, as the iterations end around it, not at it
        directions = super().balanced(params, directions)
        norms = directions.norm(dim=(-2, -1), keepdim=True).clamp(min=self.eps)
        return directions.mul_(math.sqrt(min(directions.shape[-2:])) / norms)


def by_shape(params: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Lists of parameters that can be stacked: of one shape, on one device."""
    groups = {}
    for p in params:
        groups.setdefault((p.shape, p.device), []).append(p)
    return list(groups.values())


def orthogonalized(matrices, coefficients=ITERATIONS * [COEFFICIENTS], through_gram=False, eps=1e-7) -> torch.Tensor:
    """(N, n_out, n_in) -> the same shape, each matrix U S V^T replaced by about U V^T: Newton-Schulz iterations.

    Each maps every singular value s to a s + b s^3 + c s^5. In bfloat16, which is exact enough, on a GPU that has it;
    else in float32.
    through_gram: by fewer products where it pays, in float32 alone; the result differs in its last digits.
    """
    has_bfloat16 = matrices.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    x = matrices.bfloat16() if has_bfloat16 else matrices.float()
    # lying on its side, so that x @ x.mT is as small as can be
    is_tall = x.size(-2) > x.size(-1)
    if is_tall:
        x = x.mT
    # a norm of 1 bounds the singular values by 1, where the iteration converges
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    # a square matrix is as small as its gram matrix, and would need more products, not fewer
    is_flat = x.size(-1) > 1.5 * x.size(-2)
    if through_gram and is_flat and x.dtype == torch.float32:
        x = newton_schulz_through_gram(x, coefficients)
    else:
        x = newton_schulz(x, coefficients)
    return x.mT if is_tall else x


def newton_schulz(x: torch.Tensor, coefficients) -> torch.Tensor:
    """x -> (a + b G + c G^2) x for each (a, b, c), where G = x x^T is the gram matrix of the x so far."""
    for a, b, c in coefficients:
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def newton_schulz_through_gram(x: torch.Tensor, coefficients) -> torch.Tensor:
    """The same with two products of x's size in all, not two an iteration.

    An iteration multiplies x by a polynomial Q of G, and so makes Q G Q of G. All of them can be worked out on G, which
    is small, and x is multiplied once by the product of the polynomials. For three iterations of a matrix three times
    as wide as high this is 30 % less work (bench.py --part=muon).
    G has the squares of the singular values: float32 keeps those of 0.001, bfloat16 would not.
    """
    gram = x @ x.mT
    product = None
    for i, (a, b, c) in enumerate(coefficients):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        # all are polynomials of one G, so that their order does not matter
        product = polynomial if product is None else polynomial @ product
        is_last = i == len(coefficients) - 1
        if not is_last:
            gram = polynomial @ gram @ polynomial
    return product @ x
