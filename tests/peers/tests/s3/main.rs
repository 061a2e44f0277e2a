//! Recovery points in a bucket of a store that nobody here wrote: moto, which keeps the rules of Amazon S3.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

mod component;
mod moto;
mod objects;
mod single_pass;
