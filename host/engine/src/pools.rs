//! The pools a run works with: where they are, and the sessions that are open.

use crate::error::RunError;
use std::collections::BTreeMap;
use tokio::sync::Mutex;
use vmferry_xapi::{Endpoint, Session};

/// Who we are in XAPI's session table: sessions are counted and dropped per originator.
const ORIGINATOR: &str = "vmferry";

/// Logs in where it is first asked to and keeps the session until [`Pools::close`].
#[derive(Debug)]
pub(crate) struct Pools {
    endpoints: BTreeMap<String, Endpoint>,
    sessions: Mutex<BTreeMap<String, Session>>,
}

impl Pools {
    pub(crate) fn new(endpoints: BTreeMap<String, Endpoint>) -> Self {
        Self { endpoints, sessions: Mutex::default() }
    }

    pub(crate) async fn session(&self, pool: &str) -> Result<Session, RunError> {
        let mut sessions = self.sessions.lock().await;
        if let Some(session) = sessions.get(pool) {
            return Ok(session.clone());
        }
        let endpoint = self.endpoints.get(pool).ok_or_else(|| RunError::NotFound {
            class: "pool",
            name: pool.to_owned(),
            pool: pool.to_owned(),
            remedy: "define it in the configuration",
        })?;
        let session = Session::login(endpoint, ORIGINATOR)
            .await
            .map_err(|source| RunError::Pool { pool: pool.to_owned(), source })?;
        sessions.insert(pool.to_owned(), session.clone());
        Ok(session)
    }

    /// Host and port of a pool as configured.
    pub(crate) fn address(&self, pool: &str) -> Option<String> {
        let address = self.endpoints.get(pool)?.to_string();
        address.split_once("://").map(|(_, address)| address.to_owned())
    }

    /// Logs out everywhere; a pool that cannot be reached forgets the session by itself after a day.
    pub(crate) async fn close(&self) {
        for (pool, session) in std::mem::take(&mut *self.sessions.lock().await) {
            if let Err(error) = session.logout().await {
                tracing::debug!(pool, %error, "logout failed");
            }
        }
    }
}
