//! Recovery points in a bucket of stores that nobody here wrote: moto, which keeps the rules of Amazon S3, and s3s-fs.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

mod component;
mod objects;
mod promises;
mod server;
mod single_pass;
