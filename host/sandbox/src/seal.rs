//! Sealing of what a plugin writes itself, with keys that stay with the host.

use crate::bindings::host::vmferry::plugin::types::{Error, ErrorCode};
use crate::bindings::target::vmferry::plugin::seal;
use crate::limits::{self, SEAL};
use crate::state::{State, error};
use vmferry_disk::encoding::{self, SealKey};

impl seal::Host for State {
    fn seal(&mut self, key_name: String, plain: Vec<u8>) -> wasmtime::Result<Result<Vec<u8>, Error>> {
        Ok(self.seal_key(&key_name).and_then(|key| {
            bounded(&plain, SEAL)?;
            encoding::seal(&plain, &key).map_err(|problem| error(ErrorCode::Unavailable, format!("sealing: {problem}")))
        }))
    }

    fn open(&mut self, key_name: String, sealed: Vec<u8>) -> wasmtime::Result<Result<Vec<u8>, Error>> {
        Ok(self.seal_key(&key_name).and_then(|key| {
            bounded(&sealed, SEAL + OVERHEAD)?;
            encoding::open(sealed, &key)
                .map_err(|problem| error(ErrorCode::Other("damaged".to_owned()), problem.to_string()))
        }))
    }
}

/// More than sealing adds to bytes.
const OVERHEAD: usize = 4 << 10;

fn bounded(bytes: &[u8], most: usize) -> Result<(), Error> {
    if bytes.len() > most {
        let said =
            format!("{} bytes at once; at most {} are sealed or opened", bytes.len(), limits::bytes(SEAL as u64));
        return Err(error(ErrorCode::Limit, said));
    }
    Ok(())
}

impl State {
    /// The key of this name, if the guest may seal with it.
    pub(crate) fn seal_key(&self, name: &str) -> Result<SealKey, Error> {
        self.lent.rights.seal(name).map_err(|refusal| self.denied(refusal))?;
        self.lent.services.seal_keys.get(name).cloned().ok_or_else(|| {
            error(
                ErrorCode::NotFound,
                format!("the key `{name}` is granted for sealing, but the host has no value for it"),
            )
        })
    }
}
