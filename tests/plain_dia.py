"""Dia in plain numpy, written from the description of the model alone: slow, float64, no cache, no batch, no JAX.

The independent judge of v0.1, for which no package holds a reference; checked against `transformers` in the 0626
behaviour, which shares all of it but what `v01` switches.
"""

import numpy as np


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def rotate(x: np.ndarray, theta: float) -> np.ndarray:
    """[time, heads, head_dim]: position t turns the pair (i, i + half) by t / theta^(2 i / head_dim)."""
    time, _, head_dim = x.shape
    half = head_dim // 2
    out = np.empty_like(x)
    for t in range(time):
        for i in range(half):
            angle = t / theta ** (2 * i / head_dim)
            a, b = x[t, :, i], x[t, :, i + half]
            out[t, :, i] = a * np.cos(angle) - b * np.sin(angle)
            out[t, :, i + half] = b * np.cos(angle) + a * np.sin(angle)
    return out


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, causal: bool) -> np.ndarray:
    """[T, N, H], [S, K, H] -> [T, N * H]; the scores are not scaled."""
    out = np.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head // group].T
        if causal:
            scores = np.where(np.tril(np.ones_like(scores)) > 0, scores, -np.inf)
        out[:, head] = softmax(scores) @ v[:, head // group]
    return out.reshape(len(q), -1)


class PlainDia:
    """Weights by the reference's names and shapes, as float64."""

    def __init__(self, weights: dict[str, np.ndarray], config, *, v01: bool):
        self.w = {name: array.astype(np.float64) for name, array in weights.items()}
        self.config, self.v01 = config, v01

    def heads(self, x: np.ndarray, name: str) -> np.ndarray:
        return np.einsum("td,dnh->tnh", x, self.w[name + ".weight"])

    def mlp(self, x: np.ndarray, name: str) -> np.ndarray:
        fused = np.einsum("td,dpf->tpf", x, self.w[f"{name}.wi_fused.weight"])
        gate, up = fused[:, 0], fused[:, 1]
        return (gate / (1 + np.exp(-gate)) * up) @ self.w[f"{name}.wo.weight"]

    def out(self, x: np.ndarray, name: str) -> np.ndarray:
        weight = self.w[name + ".weight"]
        return x @ weight.reshape(-1, weight.shape[-1])

    def norm(self, x: np.ndarray, name: str, eps: float) -> np.ndarray:
        return rms_norm(x, self.w[name + ".weight"], eps)

    def encode(self, text: np.ndarray) -> np.ndarray:
        enc = self.config.encoder
        x = self.w["encoder.embedding.weight"][text]
        for i in range(enc.num_layers):
            name = f"encoder.layers.{i}"
            h = self.norm(x, f"{name}.pre_sa_norm", enc.norm_eps)
            q, k, v = (self.heads(h, f"{name}.self_attention.{p}_proj") for p in "qkv")
            a = attention(rotate(q, enc.rope_theta), rotate(k, enc.rope_theta), v, causal=False)
            x = x + self.out(a, f"{name}.self_attention.o_proj")
            x = x + self.mlp(self.norm(x, f"{name}.post_sa_norm", enc.norm_eps), f"{name}.mlp")
        return self.norm(x, "encoder.norm", enc.norm_eps)

    def logits(self, text: np.ndarray, grid: np.ndarray) -> np.ndarray:
        """[S] and [T, C] -> [T, C, V]."""
        dec = self.config.decoder
        encoded = self.encode(text)
        x = sum(self.w[f"decoder.embeddings.{c}.weight"][grid[:, c]] for c in range(dec.num_channels))
        for i in range(dec.num_layers):
            name = f"decoder.layers.{i}"
            h = self.norm(x, f"{name}.pre_sa_norm", dec.norm_eps)
            q, k, v = (self.heads(h, f"{name}.self_attention.{p}_proj") for p in "qkv")
            a = attention(rotate(q, dec.rope_theta), rotate(k, dec.rope_theta), v, causal=True)
            x = x + self.out(a, f"{name}.self_attention.o_proj")
            q = self.heads(self.norm(x, f"{name}.pre_ca_norm", dec.norm_eps), f"{name}.cross_attention.q_proj")
            k = self.heads(encoded, f"{name}.cross_attention.k_proj")
            v = self.heads(encoded, f"{name}.cross_attention.v_proj")
            if self.v01:
                q, k = rotate(q, dec.rope_theta), rotate(k, dec.rope_theta)
            x = x + self.out(attention(q, k, v, causal=False), f"{name}.cross_attention.o_proj")
            x = x + self.mlp(self.norm(x, f"{name}.pre_mlp_norm", dec.norm_eps), f"{name}.mlp")
        x = self.norm(x, "decoder.norm", dec.norm_eps)
        return np.einsum("td,dcv->tcv", x, self.w["decoder.logits_dense.weight"])

    def greedy(self, text: np.ndarray, *, frames: int, prompt: np.ndarray, cfg_scale: float, top_k: int) -> np.ndarray:
        """Codes [n, C] of a greedy generation, every row computed from all rows before it."""
        config = self.config
        delays, eos, channels = config.delay_pattern, config.eos_token_id, config.decoder.num_channels
        given = {}
        for c, delay in enumerate(delays):
            for row in range(delay + 1):
                given[row, c] = config.bos_token_id
            for f in range(len(prompt)):
                given[1 + f + delay, c] = prompt[f, c]
        grid = [[given[0, c] for c in range(channels)]]
        for row in range(1, len(prompt) + 1):
            grid.append([given[row, c] for c in range(channels)])
        end = None
        while end is None or len(grid) < end + max(delays):
            row = len(grid)
            cond = self.logits(text, np.array(grid))[-1]
            uncond = self.logits(np.zeros_like(text), np.array(grid))[-1]
            guided = cond + cfg_scale * (cond - uncond)
            tokens = []
            for c in range(channels):
                if self.v01:
                    scores = guided[c].copy()
                    scores[eos] *= 0.8
                else:
                    kept = np.argsort(-guided[c])[:top_k]
                    scores = np.full_like(cond[c], -np.inf)
                    scores[kept] = cond[c][kept]
                scores[eos + (1 if c == 0 else 0) :] = -np.inf
                tokens.append(int(scores.argmax()))
            if end is None and (tokens[0] == eos or row == 1 + len(prompt) + frames):
                end = row
            for c, delay in enumerate(delays):
                if end is not None and row >= end + delay:
                    tokens[c] = eos if row == end + delay else config.pad_token_id
                tokens[c] = given.get((row, c), tokens[c])
            grid.append(tokens)
        codes = np.array([[grid[1 + f + d][c] for c, d in enumerate(delays)] for f in range(len(prompt), end - 1)])
        return np.where(codes >= eos, 0, codes)
