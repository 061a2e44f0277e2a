//! `[[plugin.NAME.credentials]]`: what the host adds to a plugin's requests to some servers.
//!
//! ```toml
//! [[plugin.target-s3.credentials]]
//! server = "https://s3.eu-central-1.amazonaws.com"
//! access_key = "AKIAIOSFODNN7EXAMPLE"
//! secret_key_file = "secrets/s3"
//! region = "eu-central-1"
//! ```
//!
//! Instead of `access_key` and what belongs to it there is `user` with `password_file`, or `bearer_file`. Each secret may also
//! stand there itself (`bearer`) or in the environment (`bearer_env`).

use super::read::Section;
use super::secret::{self, Given, Secret};
use crate::problem::Problem;
use vmferry_sandbox::{AwsKey, Credential, CredentialError, HostPattern};

const BEARER: secret::Keys =
    secret::Keys { noun: "bearer token", inline: "bearer", file: "bearer_file", env: "bearer_env" };
const PASSWORD: secret::Keys =
    secret::Keys { noun: "password", inline: "password", file: "password_file", env: "password_env" };
const SECRET_KEY: secret::Keys =
    secret::Keys { noun: "secret key", inline: "secret_key", file: "secret_key_file", env: "secret_key_env" };
const SESSION_TOKEN: secret::Keys = secret::Keys {
    noun: "session token",
    inline: "session_token",
    file: "session_token_file",
    env: "session_token_env",
};

/// The service that is signed for unless another is named.
const S3: &str = "s3";

pub(super) fn read(mut section: Section<'_>, environment: &dyn Fn(&str) -> Option<String>) -> Option<Credential> {
    let complaints = section.error_count();
    let server = section.required_string("server", "\"https://s3.example.org\"").and_then(|server| {
        let pattern = server.value.parse::<HostPattern>();
        pattern.map_err(|error| section.error(server.problem(error))).ok()
    });
    let made = if section.has("access_key") {
        read_aws(&mut section, environment).zip(server).map(|(key, server)| Credential::aws(server, key))
    } else if let Some(user) = section.string("user") {
        let password = required(&mut section, &PASSWORD, environment);
        password.zip(server).map(|(password, server)| Credential::basic(server, &user.value, password.reveal()))
    } else {
        let token = secret::read(&mut section, &BEARER, environment);
        if let (Given::Nothing, true) = (&token, section.error_count() == complaints) {
            let what = format!("{}: it does not say what proves who is asking", section.path);
            let remedy =
                "add `access_key`, `secret_key_file` and `region`, or `user` and `password_file`, or `bearer_file`";
            section.error(Problem::new(what).at(section.place()).remedy(remedy));
        }
        given(token).zip(server).map(|(token, server)| Credential::bearer(server, token.reveal()))
    };
    let wrong = |error: CredentialError| {
        let problem = Problem::new(format!("{}: {error}", section.path)).at(section.place());
        section.error(problem.remedy("write it as the server gave it"));
    };
    let credential = made.and_then(|made| made.map_err(wrong).ok());
    section.finish();
    credential
}

fn read_aws(section: &mut Section<'_>, environment: &dyn Fn(&str) -> Option<String>) -> Option<AwsKey> {
    let access_key = section.string("access_key");
    let secret_key = required(section, &SECRET_KEY, environment);
    let session_token = secret::read(section, &SESSION_TOKEN, environment);
    let region = section.required_string("region", "\"us-east-1\"");
    let service = section.string("service").map_or_else(|| S3.to_owned(), |service| service.value);
    let session_token = match session_token {
        Given::Wrong => return None,
        token => given(token).map(|token| token.reveal().to_owned()),
    };
    Some(AwsKey {
        access_key: access_key?.value,
        secret_key: secret_key?.reveal().to_owned(),
        session_token,
        region: region?.value,
        service,
    })
}

/// A secret that has to be there.
fn required(
    section: &mut Section<'_>,
    keys: &secret::Keys,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Option<Secret> {
    let secret = secret::read(section, keys, environment);
    if matches!(secret, Given::Nothing) {
        section.missing(keys.file, "\"secrets/store\"");
    }
    given(secret)
}

fn given(secret: Given) -> Option<Secret> {
    match secret {
        Given::Secret(secret) => Some(secret),
        Given::Nothing | Given::Wrong => None,
    }
}
