//! Nothing of its own: every program is an example, so that one crate can hold many components.
