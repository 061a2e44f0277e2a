//! `[pool.NAME]`: where a pool is, how to log in, whom to trust.

use super::read::{Found, Section};
use super::secret::{self, Given, Secret};
use crate::problem::Problem;
use percent_encoding::percent_decode_str;
use url::Url;
use vmferry_xapi::{Endpoint, StreamNetwork, Trust};

/// A pool to log in to.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its address, with credentials, trust, and the network that disk streams take.
    pub endpoint: Endpoint,
    /// Who logs in.
    pub username: String,
}

const PASSWORD: secret::Keys =
    secret::Keys { noun: "password", inline: "password", file: "password_file", env: "password_env" };

pub(super) fn read(mut section: Section<'_>, environment: &dyn Fn(&str) -> Option<String>) -> Option<Pool> {
    let url = section.required_string("url", "\"https://xen1.example.org\"");
    let has_username = section.has("username");
    let username = section.string("username");
    let password = secret::read(&mut section, &PASSWORD, environment);
    let trust = read_trust(&mut section);
    let network = section.string("network").map_or(StreamNetwork::OfPool, |name| StreamNetwork::Named(name.value));
    let address = url.and_then(|url| read_address(&section, &url));
    let pool = address.and_then(|address| {
        if !address.endpoint.is_tls() {
            warn_of_plain_http(&section, &address.endpoint);
        }
        let (username, endpoint) = match address.login {
            Login::Complete { username } => {
                if has_username || !matches!(password, Given::Nothing) {
                    let what = format!("{}: user and password stand in `url`, too", section.path);
                    section.error(Problem::new(what).at(section.place()).remedy("keep one of them"));
                }
                secret::warn_if_others_may_read(&section, PASSWORD.noun, section.source.path());
                (username, address.endpoint)
            }
            Login::User { username: in_url } => {
                let username = the_username(&section, has_username, username, in_url);
                let (username, password) = (username, the_password(&section, password));
                let (username, password) = (username?, password?);
                let endpoint = address.endpoint.with_credentials(&username, password.reveal());
                (username, endpoint)
            }
        };
        Some(Pool { endpoint: endpoint.with_trust(trust?).with_stream_network(network), username })
    });
    section.finish();
    pool
}

/// What a URL says.
struct Address {
    endpoint: Endpoint,
    login: Login,
}

/// Who logs in, as far as the URL says so.
enum Login {
    /// User and password; the endpoint has them.
    Complete { username: String },
    /// A user, or nobody.
    User { username: Option<String> },
}

fn read_address(section: &Section<'_>, url: &Found<String>) -> Option<Address> {
    let endpoint = match Endpoint::parse(&url.value) {
        Ok(endpoint) => endpoint,
        Err(error) => {
            section.error(url.problem(error));
            return None;
        }
    };
    // The endpoint has parsed it, so it is a URL.
    let parsed = Url::parse(url.value.trim()).ok()?;
    let username = percent_decode_str(parsed.username()).decode_utf8_lossy().into_owned();
    let username = Some(username).filter(|name| !name.is_empty());
    let login = match (username, parsed.password()) {
        (Some(username), Some(_)) => Login::Complete { username },
        (None, Some(_)) => {
            section.error(url.problem("it has a password and no user").remedy("write https://USER:PASSWORD@HOST"));
            return None;
        }
        (username, None) => Login::User { username },
    };
    Some(Address { endpoint, login })
}

fn the_username(
    section: &Section<'_>,
    has_key: bool,
    key: Option<Found<String>>,
    url: Option<String>,
) -> Option<String> {
    match (key, url) {
        (Some(key), None) => Some(key.value),
        (None, Some(url)) => Some(url),
        (Some(key), Some(_)) => {
            section.error(key.problem("the user name stands in `url`, too").remedy("keep one of them"));
            None
        }
        (None, None) => {
            // A key that is there and no string has been complained about.
            if !has_key {
                section.missing("username", "\"root\"");
            }
            None
        }
    }
}

fn the_password(section: &Section<'_>, given: Given) -> Option<Secret> {
    match given {
        Given::Secret(secret) => Some(secret),
        Given::Wrong => None,
        Given::Nothing => {
            section.missing("password_file", "\"secrets/pool\"");
            None
        }
    }
}

fn read_trust(section: &mut Section<'_>) -> Option<Trust> {
    let pin = section.string("certificate_sha256");
    let ca_file = section.string("ca_file");
    match (pin, ca_file) {
        (None, None) => Some(Trust::System),
        (Some(pin), None) => {
            let trust = Trust::parse_pin(&pin.value);
            if trust.is_none() {
                let remedy = "give the SHA-256 of the host's certificate as 64 hexadecimal digits, colons allowed: \
                              openssl x509 -noout -fingerprint -sha256";
                section.error(pin.problem("not a SHA-256 digest").remedy(remedy));
            }
            trust
        }
        (None, Some(file)) => {
            let path = section.source.resolve(&file.value);
            match std::fs::read(&path) {
                Ok(pem) => Some(Trust::CaPem(pem)),
                Err(error) => {
                    let remedy = "put the authority's certificate there as PEM, or use `certificate_sha256`";
                    section.error(file.problem(format!("{}: {error}", path.display())).remedy(remedy));
                    None
                }
            }
        }
        (Some(pin), Some(_)) => {
            let remedy = "keep one of `certificate_sha256` and `ca_file`";
            section.error(pin.problem("`ca_file` says otherwise whom to trust").remedy(remedy));
            None
        }
    }
}

fn warn_of_plain_http(section: &Section<'_>, endpoint: &Endpoint) {
    let what = format!(
        "{}: {endpoint} is not encrypted: password and disks travel readable, and no certificate is checked",
        section.path
    );
    section.warn(Problem::new(what).at(section.place()).remedy("use https:// unless the network is trusted"));
}
