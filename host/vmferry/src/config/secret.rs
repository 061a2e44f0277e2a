//! Secrets, which never print.

use super::read::Section;
use crate::problem::Problem;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A password or key. Its `Debug` shows that there is one, and no more.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret in.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Hands it to the one who needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The three keys by which a secret can be given.
pub(super) struct Keys {
    /// What it is, for messages: `password`.
    pub(super) noun: &'static str,
    pub(super) inline: &'static str,
    pub(super) file: &'static str,
    pub(super) env: &'static str,
}

/// What the configuration says about a secret.
pub(super) enum Given {
    Secret(Secret),
    /// None of the keys is there.
    Nothing,
    /// Something is there and wrong; the complaint is made.
    Wrong,
}

/// Reads a secret by whichever of its keys is there. `environment` looks up a variable.
pub(super) fn read(section: &mut Section<'_>, keys: &Keys, environment: &dyn Fn(&str) -> Option<String>) -> Given {
    let inline = section.string(keys.inline);
    let file = section.string(keys.file);
    let env = section.string(keys.env);
    match (inline, file, env) {
        (None, None, None) => Given::Nothing,
        (Some(inline), None, None) => {
            warn_if_others_may_read(section, keys.noun, section.source.path());
            Given::Secret(Secret(inline.value))
        }
        (None, Some(file), None) => match read_file(section, keys, &file.value) {
            Ok(secret) => Given::Secret(secret),
            Err(problem) => {
                section.error(problem.at(file.place));
                Given::Wrong
            }
        },
        (None, None, Some(env)) => match environment(&env.value) {
            Some(secret) if !secret.is_empty() => Given::Secret(Secret(secret)),
            _ => {
                let what = format!("the environment variable {} is not set", env.value);
                section
                    .error(env.problem(what).remedy(format!("set it to the {} before the program starts", keys.noun)));
                Given::Wrong
            }
        },
        _ => {
            let what = format!("{}: the {} is given more than once", section.path, keys.noun);
            let remedy = format!("keep one of `{}`, `{}` and `{}`", keys.inline, keys.file, keys.env);
            section.error(Problem::new(what).at(section.place()).remedy(remedy));
            Given::Wrong
        }
    }
}

fn read_file(section: &Section<'_>, keys: &Keys, path: &str) -> Result<Secret, Problem> {
    let file = section.source.resolve(path);
    let text = std::fs::read_to_string(&file).map_err(|error| {
        Problem::new(format!("{}: {} file {}: {error}", section.path, keys.noun, file.display()))
            .remedy(format!("write the {} into that file (mode 0600), or correct `{}`", keys.noun, keys.file))
    })?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        let what = format!("{}: {} file {} is empty", section.path, keys.noun, file.display());
        return Err(Problem::new(what).remedy(format!("write the {} into it", keys.noun)));
    }
    warn_if_others_may_read(section, keys.noun, &file);
    Ok(Secret(secret.to_owned()))
}

/// Warns when a file that holds a secret is open to others than its owner.
pub(super) fn warn_if_others_may_read(section: &Section<'_>, noun: &str, file: &Path) {
    let Ok(metadata) = std::fs::metadata(file) else { return };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let file = file.display();
        let what = format!("{}: the {noun} stands in {file}, which others may read (mode {mode:04o})", section.path);
        section.warn(Problem::new(what).at(section.place()).remedy(format!("chmod 600 {file}")));
    }
}
