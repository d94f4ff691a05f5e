import jax.numpy as jnp


def nearest(queries, references, query_labels=None, reference_labels=None, same=None, valid=None):
    d = (
        jnp.sum(queries**2, 1)[:, None]
        + jnp.sum(references**2, 1)[None]
        - 2 * queries @ references.T
    )
    if same is not None:
        eq = query_labels[:, None] == reference_labels[None]
        d = jnp.where(eq if same else ~eq, d, jnp.inf)
    if valid is not None:
        d = jnp.where(valid[None], d, jnp.inf)
    i = jnp.argmin(d, 1)
    return i.astype(jnp.int32), jnp.sqrt(jnp.maximum(jnp.min(d, 1), 0))
