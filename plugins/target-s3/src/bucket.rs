//! Where the objects are, and under which rules they are made.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use vmferry_plugin_api::Error;

/// A bucket, and how its objects are made.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// The store's address: `https://s3.eu-central-1.amazonaws.com`, `http://10.0.0.7:9000`.
    pub endpoint: String,
    /// The bucket's name.
    pub bucket: String,
    /// What all names begin with, so that a bucket can hold other things as well: `backup/site-a`.
    pub prefix: String,
    /// Where the bucket's name stands in an address.
    pub addressing: Addressing,
    /// Up to this size in bytes an object is sent by one request, a larger one in parts of about this size.
    pub part_size: u64,
    /// How long the store has to refuse to delete what was made: a bucket with Object Lock.
    pub lock: Option<Lock>,
}

/// Where the bucket's name stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Addressing {
    /// `https://store.example.org/bucket/name`: every store takes it.
    #[default]
    Path,
    /// `https://bucket.store.example.org/name`: what Amazon recommends. This server has to be granted, and have the credential.
    VirtualHosted,
}

/// Retention by the store itself.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Who may still delete.
    pub mode: Mode,
    /// From when an object is made, in days.
    pub days: u32,
}

/// Who may delete what is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Who has the permission to bypass it.
    Governance,
    /// Nobody.
    Compliance,
}

impl Mode {
    /// As a request names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Governance => "GOVERNANCE",
            Self::Compliance => "COMPLIANCE",
        }
    }
}

/// What stores ask of the parts of an upload, but the last; and of one request less than a host lets through.
const PART_SIZES: std::ops::RangeInclusive<u64> = 5 << 20..=512 << 20;

/// What stands in a URL as it is.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const ENCODED_IN_PATHS: &AsciiSet = &ENCODED.remove(b'/');

impl Bucket {
    /// Whether a bucket could be called and reached so. Nothing is asked of the store.
    pub fn check(&self) -> Result<(), Error> {
        let Self { endpoint, bucket, prefix, addressing, part_size, lock } = self;
        let Some((scheme, host)) = endpoint.split_once("://").filter(|(scheme, _)| matches!(*scheme, "https" | "http"))
        else {
            return Err(Error::config(format!("`endpoint`: `{endpoint}` is not an address: https://s3.example.org")));
        };
        let is_server = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'[' | b']');
        let host = host.strip_suffix('/').unwrap_or(host);
        if host.is_empty() || !host.bytes().all(is_server) {
            let example = "https://s3.example.org or http://10.0.0.7:9000";
            return Err(Error::config(format!("`endpoint`: `{endpoint}` is not a server alone: {example}")));
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let name = bucket.as_bytes();
        if !(3..=255).contains(&name.len())
            || !name.iter().copied().all(is_name)
            || !ends(name.first())
            || !ends(name.last())
        {
            return Err(Error::config(format!("`bucket`: `{bucket}` is not the name of a bucket")));
        }
        if *addressing == Addressing::VirtualHosted {
            let as_host = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
            let covered = scheme == "http" || !bucket.contains('.');
            if !name.iter().all(as_host) || !covered || name.len() > 63 {
                let why = "cannot stand before the server's name, whose certificate would not cover it";
                return Err(Error::config(format!("`addressing`: the bucket `{bucket}` {why}; write \"path\"")));
            }
            if !host.bytes().any(|byte| byte.is_ascii_alphabetic()) || host.starts_with('[') {
                let why = "is an address, before which nothing can stand";
                return Err(Error::config(format!("`addressing`: `{endpoint}` {why}; write \"path\"")));
            }
        }
        let is_part = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(is_name);
        if !prefix.is_empty() && !prefix.strip_suffix('/').unwrap_or(prefix).split('/').all(is_part) {
            return Err(Error::config(format!("`prefix`: `{prefix}` is not like `backup/site-a`")));
        }
        if !PART_SIZES.contains(part_size) {
            return Err(Error::config("`part_size`: write a size from \"5 MiB\" to \"512 MiB\""));
        }
        if lock.is_some_and(|lock| !(1..=36_500).contains(&lock.days)) {
            return Err(Error::config("`lock.days`: write a number of days between 1 and 36500"));
        }
        Ok(())
    }

    /// The key of an object.
    pub(crate) fn key(&self, name: &str) -> String {
        match self.prefix.trim_end_matches('/') {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        }
    }

    /// The name of the object with this key, if it is one of ours.
    pub(crate) fn name<'a>(&self, key: &'a str) -> Option<&'a str> {
        match self.prefix.trim_end_matches('/') {
            "" => Some(key),
            prefix => key.strip_prefix(prefix)?.strip_prefix('/'),
        }
    }

    /// The URL of an object, or of the bucket itself.
    pub(crate) fn url(&self, name: Option<&str>, query: &[(&str, &str)]) -> String {
        let endpoint = self.endpoint.trim_end_matches('/');
        let mut url = match (self.addressing, endpoint.split_once("://")) {
            (Addressing::VirtualHosted, Some((scheme, host))) => format!("{scheme}://{}.{host}/", self.bucket),
            _ => format!("{endpoint}/{}/", self.bucket),
        };
        if let Some(name) = name {
            url.extend(utf8_percent_encode(&self.key(name), ENCODED_IN_PATHS));
        }
        for (at, (name, value)) in query.iter().enumerate() {
            url.push(if at == 0 { '?' } else { '&' });
            url.push_str(name);
            url.push('=');
            url.extend(utf8_percent_encode(value, ENCODED));
        }
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket() -> Bucket {
        Bucket {
            endpoint: "https://s3.example.org".to_owned(),
            bucket: "backup".to_owned(),
            prefix: "site-a/".to_owned(),
            addressing: Addressing::Path,
            part_size: 64 << 20,
            lock: None,
        }
    }

    #[test]
    fn an_object_has_one_url_by_either_addressing() {
        let query = [("list-type", "2"), ("prefix", "a/b c")];
        let path = bucket();
        path.check().expect("right");
        assert_eq!(path.url(Some("packs/a~b"), &[]), "https://s3.example.org/backup/site-a/packs/a~b");
        assert_eq!(path.url(None, &query), "https://s3.example.org/backup/?list-type=2&prefix=a%2Fb%20c");
        let host = Bucket { addressing: Addressing::VirtualHosted, prefix: String::new(), ..path };
        host.check().expect("right");
        assert_eq!(host.url(Some("packs/a"), &[]), "https://backup.s3.example.org/packs/a");
        assert_eq!(host.name("packs/a"), Some("packs/a"));
    }

    #[test]
    fn a_key_outside_of_the_prefix_is_another_s() {
        let bucket = bucket();
        assert_eq!(bucket.name(&bucket.key("points/a")), Some("points/a"));
        assert_eq!(bucket.name("site-abc/points/a"), None);
        assert_eq!(bucket.name("other/points/a"), None);
    }

    #[test]
    fn what_cannot_be_reached_is_named() {
        let wrong = |change: &dyn Fn(&mut Bucket)| {
            let mut bucket = bucket();
            change(&mut bucket);
            bucket.check().expect_err("wrong").message
        };
        assert!(wrong(&|b| b.endpoint = "s3.example.org".to_owned()).starts_with("`endpoint`"));
        assert!(wrong(&|b| b.endpoint = "https://s3.example.org/x".to_owned()).starts_with("`endpoint`"));
        assert!(wrong(&|b| b.endpoint = "https://me@s3.example.org".to_owned()).starts_with("`endpoint`"));
        assert!(wrong(&|b| b.bucket = "a/b".to_owned()).starts_with("`bucket`"));
        assert!(wrong(&|b| b.prefix = "/a".to_owned()).starts_with("`prefix`"));
        assert!(wrong(&|b| b.prefix = "a//b".to_owned()).starts_with("`prefix`"));
        assert!(wrong(&|b| b.prefix = "a/../b".to_owned()).starts_with("`prefix`"));
        assert!(wrong(&|b| b.part_size = 4 << 20).starts_with("`part_size`"));
        assert!(wrong(&|b| b.lock = Some(Lock { mode: Mode::Governance, days: 0 })).starts_with("`lock.days`"));
        let hosted = |bucket: &str, endpoint: &str| {
            wrong(&|b| {
                (b.bucket, b.endpoint) = (bucket.to_owned(), endpoint.to_owned());
                b.addressing = Addressing::VirtualHosted;
            })
        };
        assert!(hosted("a.b.c", "https://s3.example.org").contains("certificate"));
        assert!(hosted("abc", "http://10.0.0.7:9000").contains("is an address"));
    }
}
