//! What a plugin may do beyond computing.
//!
//! Ask twice: the manifest requests, the operator grants, and a plugin has the intersection. [`Rights`] is that
//! intersection; its methods are the only place that says yes or no, and a no names the line to add.

use crate::convert;
use crate::egress::Unproven;
use std::fmt;
use std::str::FromStr;
use url::{Host, Url};

/// What somebody asks for or gives. Empty means nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Servers that requests may go to.
    pub http: Vec<HostPattern>,
    /// Names of keys to sign with; `*` stands for any.
    pub sign: Vec<String>,
    /// Names of keys to seal with; `*` stands for any.
    pub seal: Vec<String>,
    /// Whether exclusive rights may be taken.
    pub lock: bool,
    /// Folders with whatever is in them, by absolute paths without symbolic links, none inside another. A manifest can only ask
    /// for some, with `["*"]`.
    pub folders: Vec<String>,
    /// Whether small values may be kept. The operator's side is the quota, [`Limits::store`](crate::Limits::store).
    pub store: bool,
    /// Whether servers may have loopback, link-local and private addresses. An address that a grant spells out
    /// needs no further permission. Only the operator's word counts.
    pub private_addresses: bool,
}

/// Servers by scheme, host and port: `https://ops.example.org`, `https://*.example.org:8443`, `http://10.0.0.7:8080`,
/// `https://*`, `http://*:*`.
///
/// Without a port the scheme's own is meant. Plain HTTP is allowed only by a pattern that says `http`. There is no
/// path in a pattern: a server that answers one path can answer for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    scheme: Scheme,
    host: HostPart,
    port: PortPart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum HostPart {
    Any,
    /// Anything below this domain, not the domain itself.
    Below(String),
    Exactly(Host<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PortPart {
    Any,
    Exactly(u16),
}

/// A pattern that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{pattern}` is not a server: {problem}; write `https://ops.example.org` or `http://10.0.0.7:8080`")]
pub struct PatternError {
    pattern: String,
    problem: &'static str,
}

impl FromStr for HostPattern {
    type Err = PatternError;

    fn from_str(pattern: &str) -> Result<Self, PatternError> {
        let wrong = |problem| PatternError { pattern: convert::text(pattern), problem };
        let (scheme, rest) = pattern.split_once("://").ok_or_else(|| wrong("the scheme is missing"))?;
        let scheme = match scheme {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(wrong("the scheme is neither `https` nor `http`")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '@']) {
            return Err(wrong("a server has no path and no user"));
        }
        // A colon inside brackets belongs to an IPv6 address.
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (rest, None),
        };
        let port = match port {
            None => PortPart::Exactly(scheme.default_port()),
            Some("*") => PortPart::Any,
            Some(port) => PortPart::Exactly(port.parse().map_err(|_| wrong("the port is no port"))?),
        };
        let host = match host {
            "*" => HostPart::Any,
            _ => match host.strip_prefix("*.") {
                Some(domain) => match Host::parse(domain) {
                    Ok(Host::Domain(domain)) => HostPart::Below(domain),
                    _ => return Err(wrong("only a domain can follow `*.`")),
                },
                None if host.contains('*') => return Err(wrong("`*` stands for whole labels")),
                None => HostPart::Exactly(Host::parse(host).map_err(|_| wrong("the host is no host"))?),
            },
        };
        Ok(Self { scheme, host, port })
    }
}

impl Scheme {
    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.scheme {
            Scheme::Http => "http://",
            Scheme::Https => "https://",
        })?;
        match &self.host {
            HostPart::Any => f.write_str("*")?,
            HostPart::Below(domain) => write!(f, "*.{domain}")?,
            HostPart::Exactly(host) => write!(f, "{host}")?,
        }
        match self.port {
            PortPart::Any => f.write_str(":*"),
            PortPart::Exactly(port) if port == self.scheme.default_port() => Ok(()),
            PortPart::Exactly(port) => write!(f, ":{port}"),
        }
    }
}

impl HostPattern {
    pub(crate) fn matches(&self, url: &Url) -> bool {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        let host = match (&self.host, url.host()) {
            (_, None) => false,
            (HostPart::Any, Some(_)) => true,
            (HostPart::Below(domain), Some(Host::Domain(host))) => {
                host.strip_suffix(domain.as_str()).is_some_and(|labels| labels.len() > 1 && labels.ends_with('.'))
            }
            (HostPart::Below(_), Some(_)) => false,
            (HostPart::Exactly(expected), Some(host)) => *expected == host.to_owned(),
        };
        let port = match self.port {
            PortPart::Any => true,
            PortPart::Exactly(port) => url.port_or_known_default() == Some(port),
        };
        url.scheme() == scheme && host && port
    }

    /// Whether the pattern spells out an address, so that the operator has seen where it leads.
    fn is_an_address(&self) -> bool {
        matches!(self.host, HostPart::Exactly(Host::Ipv4(_) | Host::Ipv6(_)))
    }
}

/// Which resolved addresses a permitted server may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Addresses {
    /// Those that the whole internet could reach.
    Public,
    /// Any host's.
    Any,
}

/// What a plugin may do: what was both requested and granted.
#[derive(Clone, Debug)]
pub(crate) struct Rights {
    plugin: String,
    /// `None` for a component without a manifest: the operator named the file, so the operator's word is enough.
    requested: Option<Grants>,
    granted: Grants,
}

/// A no, with the line to add.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("its plugin.toml does not request {what}; a plugin gets only what it requests and is granted")]
    NotRequested { what: String },
    /// The name is the guest's own, and so not repeated.
    #[error("it asked for a key by a name that no key has; names have 1 to 64 letters, digits, `.`, `_` and `-`")]
    NoKeyName,
    #[error(
        "it set the user or `authorization` of a request to {server} itself, for which the host has a credential; take \
         one out of the plugin's settings, or the other out of `[plugin.{plugin}]`"
    )]
    OwnCredential { plugin: String, server: String },
    #[error("its request to {server} is of a method that would send the host's credential back to it")]
    Echo { server: String },
    #[error("{what} was not granted; to allow it, write under `[plugin.{plugin}]`: {line}")]
    NotGranted { plugin: String, what: String, line: String },
}

impl Rights {
    pub(crate) fn new(plugin: &str, requested: Option<Grants>, granted: Grants) -> Self {
        Self { plugin: plugin.to_owned(), requested, granted }
    }

    /// May a request go to this URL, and to which addresses?
    pub(crate) fn http(&self, url: &Url) -> Result<Addresses, Refusal> {
        let server = server(url);
        let asked = |grants: &Grants| grants.http.iter().any(|pattern| pattern.matches(url));
        if self.requested.as_ref().is_some_and(|requested| !asked(requested)) {
            return Err(Refusal::NotRequested { what: format!("requests to {server}") });
        }
        let granted: Vec<_> = self.granted.http.iter().filter(|pattern| pattern.matches(url)).collect();
        if granted.is_empty() {
            let line = format!("grants.http = [\"{server}\"]");
            return Err(self.not_granted(format!("a request to {server}"), line));
        }
        let any = self.granted.private_addresses || granted.iter().any(|pattern| pattern.is_an_address());
        Ok(if any { Addresses::Any } else { Addresses::Public })
    }

    /// The refusal of an address that a permitted name led to.
    pub(crate) fn address_refusal(&self, url: &Url, kind: &'static str) -> Refusal {
        let what = format!("{}, which has {kind} address,", server(url));
        self.not_granted(what, "grants.private_addresses = true".to_owned())
    }

    /// The refusal of a request that the host's credential cannot go with.
    pub(crate) fn unproven(&self, url: &Url, why: Unproven) -> Refusal {
        let server = server(url);
        match why {
            Unproven::Contradicted => Refusal::OwnCredential { plugin: self.plugin.clone(), server },
            Unproven::Echoed => Refusal::Echo { server },
        }
    }

    /// May this key sign?
    pub(crate) fn sign(&self, key: &str) -> Result<(), Refusal> {
        self.key(key, "sign", |grants| &grants.sign)
    }

    /// May this key seal?
    pub(crate) fn seal(&self, key: &str) -> Result<(), Refusal> {
        self.key(key, "seal", |grants| &grants.seal)
    }

    fn key(&self, key: &str, grant: &str, names: impl Fn(&Grants) -> &[String]) -> Result<(), Refusal> {
        if !is_name(key) {
            return Err(Refusal::NoKeyName);
        }
        let named = |grants: &Grants| names(grants).iter().any(|name| name == "*" || name == key);
        let what = format!("the {grant}ing key `{key}`");
        if self.requested.as_ref().is_some_and(|requested| !named(requested)) {
            return Err(Refusal::NotRequested { what });
        }
        if !named(&self.granted) {
            return Err(self.not_granted(what, format!("grants.{grant} = [\"{key}\"]")));
        }
        Ok(())
    }

    /// May exclusive rights be taken?
    pub(crate) fn lock(&self) -> Result<(), Refusal> {
        let what = "locks".to_owned();
        if self.requested.as_ref().is_some_and(|requested| !requested.lock) {
            return Err(Refusal::NotRequested { what });
        }
        if !self.granted.lock {
            return Err(self.not_granted(what, "grants.lock = true".to_owned()));
        }
        Ok(())
    }

    /// The folders that it has. What it names itself it finds among them or not at all, so there is nothing to refuse but to ask
    /// for none.
    pub(crate) fn folders(&self) -> Result<&[String], Refusal> {
        match &self.requested {
            Some(requested) if requested.folders.is_empty() && !self.granted.folders.is_empty() => {
                Err(Refusal::NotRequested { what: "folders".to_owned() })
            }
            _ => Ok(&self.granted.folders),
        }
    }

    /// May values be kept?
    pub(crate) fn store(&self, quota: u64) -> Result<(), Refusal> {
        if self.requested.as_ref().is_some_and(|requested| !requested.store) {
            return Err(Refusal::NotRequested { what: "a store".to_owned() });
        }
        if quota == 0 {
            return Err(self.not_granted("a store".to_owned(), "limits.store = \"256 KiB\"".to_owned()));
        }
        Ok(())
    }

    fn not_granted(&self, what: String, line: String) -> Refusal {
        Refusal::NotGranted { plugin: self.plugin.clone(), what, line }
    }
}

/// Whether a key or a lock can have this name: one that can stand in a configuration and in a log line as it is.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// A URL's server as a grant would name it.
fn server(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(all: &[&str]) -> Vec<HostPattern> {
        all.iter().map(|pattern| pattern.parse().expect("a pattern")).collect()
    }

    fn grants(http: &[&str]) -> Grants {
        Grants { http: patterns(http), ..Grants::default() }
    }

    fn may(requested: &[&str], granted: &[&str], url: &str) -> Result<Addresses, String> {
        let rights = Rights::new("hook", Some(grants(requested)), grants(granted));
        rights.http(&Url::parse(url).expect("a URL")).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn a_plugin_has_what_is_both_requested_and_granted() {
        let any = &["https://*:*", "http://*:*"][..];
        let ops = &["https://ops.example.org"][..];
        let table: &[(&[&str], &[&str], &str, bool)] = &[
            (any, ops, "https://ops.example.org/hook", true),
            (any, ops, "https://ops.example.org:443/", true),
            (any, ops, "https://OPS.example.org/", true),
            (any, ops, "https://ops.example.org:8443/", false),
            (any, ops, "http://ops.example.org/", false),
            (any, ops, "https://ops.example.org.evil.net/", false),
            (any, ops, "https://evil.net/?https://ops.example.org", false),
            (any, ops, "https://user@ops.example.org/", true),
            (any, ops, "https://ops.example.org@evil.net/", false),
            (any, &[], "https://ops.example.org/", false),
            (&[], ops, "https://ops.example.org/", false),
            (ops, any, "https://ops.example.org/", true),
            (ops, any, "https://other.example.org/", false),
            (any, &["https://*.example.org"], "https://a.b.example.org/", true),
            (any, &["https://*.example.org"], "https://example.org/", false),
            (any, &["https://*.example.org"], "https://badexample.org/", false),
            (any, &["http://127.0.0.1:8080"], "http://127.0.0.1:8080/x", true),
            (any, &["http://127.0.0.1:8080"], "http://localhost:8080/x", false),
            (any, &["http://127.0.0.1:8080"], "http://2130706433:8080/x", true),
            (any, &["https://[fd00::1]:8443"], "https://[fd00::1]:8443/", true),
        ];
        for (requested, granted, url, expected) in table {
            let answer = may(requested, granted, url);
            assert_eq!(answer.is_ok(), *expected, "{requested:?} {granted:?} {url}: {answer:?}");
        }
    }

    #[test]
    fn a_refusal_names_the_line_to_add() {
        assert_eq!(
            may(&["https://*:*"], &[], "https://ops.example.org:8443/hook").expect_err("not granted"),
            "a request to https://ops.example.org:8443 was not granted; to allow it, write under `[plugin.hook]`: \
             grants.http = [\"https://ops.example.org:8443\"]"
        );
        assert_eq!(
            may(&[], &["https://ops.example.org"], "https://ops.example.org/").expect_err("not requested"),
            "its plugin.toml does not request requests to https://ops.example.org; a plugin gets only what it requests \
             and is granted"
        );
    }

    #[test]
    fn an_address_that_is_spelled_out_is_granted_as_such_and_a_name_is_not() {
        let any = &["https://*:*", "http://*:*"][..];
        assert_eq!(may(any, &["http://127.0.0.1:8080"], "http://127.0.0.1:8080/"), Ok(Addresses::Any));
        assert_eq!(may(any, &["http://localhost:8080"], "http://localhost:8080/"), Ok(Addresses::Public));
        assert_eq!(may(any, &["http://*:*"], "http://127.0.0.1:8080/"), Ok(Addresses::Public));
    }

    #[test]
    fn keys_are_granted_by_name() {
        let all = Grants { sign: vec!["*".to_owned()], ..Grants::default() };
        let one = Grants { sign: vec!["hooks".to_owned()], ..Grants::default() };
        let rights = Rights::new("hook", Some(all.clone()), one.clone());
        assert_eq!(rights.sign("hooks"), Ok(()));
        assert!(rights.sign("other").expect_err("not granted").to_string().contains("grants.sign = [\"other\"]"));
        assert!(Rights::new("hook", Some(Grants::default()), all).sign("hooks").is_err());
        assert_eq!(Rights::new("hook", None, one).sign("hooks"), Ok(()));
    }

    #[test]
    fn a_refusal_does_not_repeat_what_cannot_name_a_key() {
        let all = Grants { sign: vec!["*".to_owned()], ..Grants::default() };
        for rights in
            [Rights::new("hook", Some(all.clone()), all.clone()), Rights::new("hook", Some(all), Grants::default())]
        {
            for name in [
                "",
                "a\n[plugin.other]",
                "x\"]\ngrants.http = [\"https://*\"",
                "\u{202e}x",
                "ä",
                "a b",
                &"k".repeat(65),
            ] {
                assert_eq!(rights.sign(name), Err(Refusal::NoKeyName), "{name:?}");
            }
        }
        let all = Grants { sign: vec!["*".to_owned()], ..Grants::default() };
        let rights = Rights::new("hook", None, all);
        for name in ["a", "Ops.hook_2-b", &"k".repeat(64)] {
            assert_eq!(rights.sign(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn what_is_no_server_is_refused_with_an_example() {
        for wrong in
            ["ops.example.org", "ftp://x", "https://a/b", "https://*foo.org", "https://u@h", "https://h:x", "https://"]
        {
            let error = wrong.parse::<HostPattern>().expect_err(wrong).to_string();
            assert!(error.contains(wrong) && error.contains("https://ops.example.org"), "{error}");
        }
        for right in [
            "https://ops.example.org",
            "http://10.0.0.7:8080",
            "https://*.example.org:8443",
            "http://*:*",
            "https://[::1]",
        ] {
            assert_eq!(right.parse::<HostPattern>().expect(right).to_string(), right);
        }
    }
}
