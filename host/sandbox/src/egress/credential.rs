//! What proves to a server who is asking. A plugin sends requests without it, and never sees it.

use super::sigv4;
use crate::grants::HostPattern;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use jiff::Timestamp;
use std::fmt;
use url::Url;

/// What the host adds to a plugin's requests to some servers. It grants nothing: that a request may be sent is
/// [`Grants::http`](crate::Grants::http).
#[derive(Clone)]
pub struct Credential {
    server: HostPattern,
    proof: Proof,
}

#[derive(Clone)]
enum Proof {
    /// The same with every request.
    Header(HeaderValue),
    Aws(AwsKey),
}

/// A key of an object store, for AWS Signature Version 4 as Amazon S3 and what speaks its protocol want it.
#[derive(Clone, Default)]
pub struct AwsKey {
    /// Its public half.
    pub access_key: String,
    /// Its secret half.
    pub secret_key: String,
    /// What temporary keys come with.
    pub session_token: Option<String>,
    /// The region that the store says it is in: `eu-central-1`. Many stores accept `us-east-1` alone.
    pub region: String,
    /// The service that is signed for: `s3`.
    pub service: String,
}

/// A credential that no request could carry. Its value is not repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// What a header cannot hold.
    #[error("the {0} has letters that no HTTP header can carry; write printable ASCII without spaces at its ends")]
    Letters(&'static str),
    /// A name with a colon.
    #[error("the user name has a colon, which would end it; the server would take the rest for the password")]
    Colon,
    /// Something without which nothing can be signed.
    #[error("the {0} is empty")]
    Empty(&'static str),
}

/// Why a request is not sent with a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unproven {
    /// The guest says itself who is asking.
    Contradicted,
    /// The server would send back what it was sent.
    Echoed,
}

impl Credential {
    /// `Authorization: Bearer TOKEN`.
    pub fn bearer(server: HostPattern, token: &str) -> Result<Self, CredentialError> {
        if token.is_empty() {
            return Err(CredentialError::Empty("bearer token"));
        }
        Ok(Self { server, proof: Proof::Header(secret_header("bearer token", format!("Bearer {token}"))?) })
    }

    /// `Authorization: Basic`, with a user name and a password.
    pub fn basic(server: HostPattern, user: &str, password: &str) -> Result<Self, CredentialError> {
        if user.contains(':') {
            return Err(CredentialError::Colon);
        }
        let pair = STANDARD.encode(format!("{user}:{password}"));
        Ok(Self { server, proof: Proof::Header(secret_header("password", format!("Basic {pair}"))?) })
    }

    /// AWS Signature Version 4 of each request.
    pub fn aws(server: HostPattern, key: AwsKey) -> Result<Self, CredentialError> {
        if key.secret_key.is_empty() {
            return Err(CredentialError::Empty("secret key"));
        }
        // The others stand in headers.
        let token = key.session_token.as_deref().unwrap_or("none");
        let parts = [
            ("access key", &*key.access_key),
            ("session token", token),
            ("region", &*key.region),
            ("service", &*key.service),
        ];
        for (what, part) in parts {
            if part.is_empty() {
                return Err(CredentialError::Empty(what));
            }
            if !part.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(CredentialError::Letters(what));
            }
        }
        Ok(Self { server, proof: Proof::Aws(key) })
    }

    /// The servers that get it.
    pub fn server(&self) -> &HostPattern {
        &self.server
    }

    pub(crate) fn is_for(&self, url: &Url) -> bool {
        self.server.matches(url)
    }

    /// Adds what the server wants to see. The headers have to be those that are sent.
    pub(crate) fn prove(
        &self,
        method: &http::Method,
        url: &Url,
        headers: &mut HeaderMap,
        now: Timestamp,
    ) -> Result<(), Unproven> {
        // A user in the URL becomes the same header.
        if headers.contains_key(AUTHORIZATION) || !url.username().is_empty() || url.password().is_some() {
            return Err(Unproven::Contradicted);
        }
        if matches!(*method, http::Method::TRACE | http::Method::CONNECT) {
            return Err(Unproven::Echoed);
        }
        match &self.proof {
            Proof::Header(value) => {
                headers.insert(AUTHORIZATION, value.clone());
            }
            Proof::Aws(key) => sigv4::sign(key, method, url, headers, now),
        }
        Ok(())
    }
}

fn secret_header(what: &'static str, value: String) -> Result<HeaderValue, CredentialError> {
    let mut value = HeaderValue::from_maybe_shared(bytes::Bytes::from(value))
        .map_err(|_| CredentialError::Letters(what))
        .and_then(|value| if value.to_str().is_ok() { Ok(value) } else { Err(CredentialError::Letters(what)) })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Says for whom and of what sort.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sort = match &self.proof {
            Proof::Header(_) => "header",
            Proof::Aws(_) => "aws",
        };
        f.debug_struct("Credential").field("server", &self.server.to_string()).field("sort", &sort).finish()
    }
}

/// Without its secrets.
impl fmt::Debug for AwsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { access_key, region, service, .. } = self;
        f.debug_struct("AwsKey")
            .field("access_key", access_key)
            .field("region", region)
            .field("service", service)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> HostPattern {
        "https://store.example.org".parse().expect("a server")
    }

    fn proven(
        credential: &Credential,
        method: http::Method,
        url: &str,
        own: &[(&'static str, &str)],
    ) -> Result<HeaderMap, Unproven> {
        let mut headers: HeaderMap =
            own.iter().map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value"))).collect();
        let url = Url::parse(url).expect("a URL");
        credential.prove(&method, &url, &mut headers, Timestamp::UNIX_EPOCH).map(|()| headers)
    }

    #[test]
    fn a_fixed_credential_is_the_header_that_servers_expect() {
        let url = "https://store.example.org/a";
        let bearer = Credential::bearer(server(), "t0k.en~").expect("a token");
        let headers = proven(&bearer, http::Method::GET, url, &[]).expect("proven");
        assert_eq!(headers[AUTHORIZATION], "Bearer t0k.en~");
        assert!(headers[AUTHORIZATION].is_sensitive());
        // The example of RFC 7617.
        let basic = Credential::basic(server(), "Aladdin", "open sesame").expect("a password");
        let headers = proven(&basic, http::Method::GET, url, &[]).expect("proven");
        assert_eq!(headers[AUTHORIZATION], "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }

    #[test]
    fn a_guest_can_neither_say_itself_who_asks_nor_have_it_sent_back() {
        let bearer = Credential::bearer(server(), "token").expect("a token");
        let refused = |method, url, own: &[_]| proven(&bearer, method, url, own).expect_err("refused");
        let url = "https://store.example.org/";
        assert_eq!(refused(http::Method::GET, url, &[("authorization", "mine")]), Unproven::Contradicted);
        assert_eq!(refused(http::Method::GET, "https://me@store.example.org/", &[]), Unproven::Contradicted);
        assert_eq!(refused(http::Method::GET, "https://:pw@store.example.org/", &[]), Unproven::Contradicted);
        assert_eq!(refused(http::Method::TRACE, url, &[]), Unproven::Echoed);
    }

    #[test]
    fn what_no_header_can_carry_is_refused_without_repeating_it() {
        let error = Credential::bearer(server(), "to\nken").expect_err("no header").to_string();
        assert!(error.contains("bearer token") && !error.contains("ken;"), "{error}");
        assert_eq!(Credential::basic(server(), "a:b", "c").expect_err("a colon"), CredentialError::Colon);
        let key = AwsKey { access_key: "AK".into(), region: "r".into(), service: "s3".into(), ..AwsKey::default() };
        assert_eq!(Credential::aws(server(), key.clone()).expect_err("no key"), CredentialError::Empty("secret key"));
        let wrong = AwsKey { secret_key: "s".into(), region: "eu central".into(), ..key };
        assert_eq!(Credential::aws(server(), wrong).expect_err("a space"), CredentialError::Letters("region"));
    }

    #[test]
    fn nothing_that_is_printed_shows_a_secret() {
        let key = AwsKey { access_key: "AK".into(), secret_key: "hush".into(), ..AwsKey::default() };
        let key = AwsKey { session_token: Some("hush".into()), region: "r".into(), service: "s3".into(), ..key };
        let printed =
            format!("{key:?} {:?} {:?}", Credential::bearer(server(), "hush"), Credential::aws(server(), key.clone()));
        assert!(!printed.contains("hush") && printed.contains("https://store.example.org"), "{printed}");
    }
}
