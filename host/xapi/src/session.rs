//! A session at a pool's master: login, calls, re-login, logout.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::api_error::ApiError;
use crate::decode::{self, DecodeError};
use crate::endpoint::{Address, Endpoint, StreamNetwork};
use crate::error::Error;
use crate::params;
use crate::records::{Host, Pool, Record};
use crate::reference::{Ref, SessionRef};
use crate::retry::{is_idempotent, pause_before};
use crate::route::Remembered;
use crate::rpc::Rpc;
use crate::tls::Tls;
use crate::value::{Timestamp, Value};

/// The version of the API that clients have named at login ever since.
const API_VERSION: &str = "1.0";

/// How many hosts are asked for the master. One member is enough to find it; the rest is for a change of master in
/// between.
const MAX_HOSTS: usize = 3;

/// A session at a pool. Cheap to clone; all clones are the same session.
///
/// It belongs to a runtime of tokio. A session that expired is logged in again by itself, once per call, and the
/// call is repeated: XAPI refuses a dead session before it does anything. Log out at the end, or the pool keeps the
/// session for a day.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: Endpoint,
    originator: String,
    rpc: Rpc,
    state: RwLock<State>,
    /// Held during a re-login, so that many calls that find the session dead make one new session.
    renewal: tokio::sync::Mutex<()>,
    /// Where disk streams go.
    route: Remembered,
}

#[derive(Clone)]
enum State {
    LoggedIn(Arc<Login>),
    LoggedOut,
}

/// A session reference and the master that gave it.
pub(crate) struct Login {
    pub(crate) master: Address,
    pub(crate) reference: SessionRef,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("endpoint", &self.inner.endpoint.to_string()).finish_non_exhaustive()
    }
}

impl Session {
    /// Logs in at the pool's master. A member of the pool names it; only a login is answered like that.
    ///
    /// `originator` names the program; XAPI counts and limits sessions by it.
    pub async fn login(endpoint: &Endpoint, originator: &str) -> Result<Self, Error> {
        let rpc = Rpc::new(endpoint)?;
        let login = log_in(&rpc, endpoint, endpoint.address.clone(), originator).await?;
        let inner = Inner {
            endpoint: endpoint.clone(),
            originator: originator.to_owned(),
            rpc,
            state: RwLock::new(State::LoggedIn(Arc::new(login))),
            renewal: tokio::sync::Mutex::new(()),
            route: Remembered::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Ends the session. Calls on it and on its clones fail from here on.
    pub async fn logout(&self) -> Result<(), Error> {
        let state = std::mem::replace(&mut *self.state_mut(), State::LoggedOut);
        let State::LoggedIn(login) = state else { return Ok(()) };
        match self.call_once(&login, "session.logout", &[]).await {
            Ok(_) | Err(Error::Api(ApiError::SessionInvalid)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Calls `method`, such as `VM.get_record`, with the session before `params`, and reads the answer as a `T`.
    ///
    /// Integers are read from digits, enums from their names, `()` from nothing; members that `T` does not know are
    /// skipped. A failed connection is tried again only for calls that change nothing (`get_*`, `list_*`).
    pub async fn call<T: DeserializeOwned>(&self, method: &str, params: Vec<Value>) -> Result<T, Error> {
        let value = self.call_value(method, &params).await?;
        decode::from_value(&value).map_err(|e| Error::decode(method, e))
    }

    /// All objects of a class.
    pub async fn get_all_records<T: Record>(&self) -> Result<Vec<(Ref<T>, T)>, Error> {
        let method = format!("{}.get_all_records", T::CLASS);
        let wrong = |reason: &str| Error::decode(&method, DecodeError::new(reason));
        let Value::Struct(records) = self.call_value(&method, &[]).await? else {
            return Err(wrong("no map of records"));
        };
        let read = |(reference, record): (String, Value)| {
            let record = read_record::<T>(record).map_err(|e| Error::decode(&method, e.inside(&reference)))?;
            Ok((Ref::new(reference), record))
        };
        records.into_iter().map(read).collect()
    }

    /// One object.
    pub async fn get_record<T: Record>(&self, object: &Ref<T>) -> Result<T, Error> {
        let method = format!("{}.get_record", T::CLASS);
        let record = self.call_value(&method, &params![object]).await?;
        read_record(record).map_err(|e| Error::decode(&method, e))
    }

    /// The reference of the object with this uuid.
    pub async fn by_uuid<T: Record>(&self, uuid: &str) -> Result<Ref<T>, Error> {
        self.call(&format!("{}.get_by_uuid", T::CLASS), params![uuid]).await
    }

    /// Adds a key to `other_config`. A key that exists already is [`ApiError::MapDuplicateKey`], and nothing changes.
    pub async fn add_to_other_config<T: Record>(&self, object: &Ref<T>, key: &str, value: &str) -> Result<(), Error> {
        self.call(&format!("{}.add_to_other_config", T::CLASS), params![object, key, value]).await
    }

    /// Removes a key from `other_config`; that it is not there is fine.
    pub async fn remove_from_other_config<T: Record>(&self, object: &Ref<T>, key: &str) -> Result<(), Error> {
        self.call(&format!("{}.remove_from_other_config", T::CLASS), params![object, key]).await
    }

    /// Sets a key of `other_config`, whatever it was. These are two calls: in between, the key is absent.
    pub async fn set_other_config_key<T: Record>(&self, object: &Ref<T>, key: &str, value: &str) -> Result<(), Error> {
        self.remove_from_other_config(object, key).await?;
        self.add_to_other_config(object, key, value).await
    }

    /// The clock of the pool's master, in whole seconds.
    pub async fn server_time(&self) -> Result<Timestamp, Error> {
        let pools = self.get_all_records::<Pool>().await?;
        let master: Ref<Host> = pools.into_iter().next().map(|(_, pool)| pool.master).unwrap_or_default();
        self.call("host.get_servertime", params![master]).await
    }

    /// Host of the current master, with its port unless that is the usual one.
    pub fn master_address(&self) -> String {
        match &*self.state() {
            State::LoggedIn(login) => login.master.to_string(),
            State::LoggedOut => self.inner.endpoint.address.to_string(),
        }
    }

    /// Whether calls and streams are encrypted.
    pub fn endpoint_is_tls(&self) -> bool {
        self.inner.endpoint.is_tls()
    }

    /// The longest a call may take.
    pub(crate) fn rpc_timeout(&self) -> Duration {
        self.inner.rpc.timeout()
    }

    pub(crate) fn tls(&self) -> &Tls {
        &self.inner.endpoint.tls
    }

    /// What believes the certificate that the pool names for its host at `address`; `None` if that is none of its
    /// hosts, or has none.
    pub(crate) async fn tls_named_for(&self, address: &Address) -> Result<Option<Tls>, Error> {
        let hosts = self.get_all_records::<Host>().await?;
        let Some((host, _)) = hosts.into_iter().find(|(_, host)| address.at(&host.address) == *address) else {
            return Ok(None);
        };
        let pem: String = self.call("host.get_server_certificate", params![host]).await?;
        Ok(Tls::named(&pem).ok())
    }

    pub(crate) fn stream_network(&self) -> &StreamNetwork {
        &self.inner.endpoint.stream_network
    }

    pub(crate) fn remembered_route(&self) -> &Remembered {
        &self.inner.route
    }

    /// The host of the configured address.
    pub(crate) fn host(&self) -> &str {
        self.inner.endpoint.host()
    }

    /// How long a host may take no byte of an import.
    pub(crate) fn standstill(&self) -> Duration {
        self.inner.endpoint.standstill
    }

    /// The session as it is now, for `method`.
    pub(crate) fn current(&self, method: &str) -> Result<Arc<Login>, Error> {
        match &*self.state() {
            State::LoggedIn(login) => Ok(Arc::clone(login)),
            State::LoggedOut => Err(Error::LoggedOut { method: method.to_owned() }),
        }
    }

    /// [`Session::call`] without reading the answer.
    pub(crate) async fn call_value(&self, method: &str, params: &[Value]) -> Result<Value, Error> {
        let mut login = self.current(method)?;
        let (mut renewed, mut attempt) = (false, 0);
        loop {
            match self.call_once(&login, method, params).await {
                Err(Error::Api(ApiError::SessionInvalid)) if !renewed => {
                    renewed = true;
                    login = self.renew(&login, method).await?;
                }
                Err(e @ Error::Transport { .. }) if is_idempotent(method) => {
                    attempt += 1;
                    let Some(pause) = pause_before(attempt) else { return Err(e) };
                    tracing::debug!(method, attempt, error = %e, "the connection failed, the call is repeated");
                    tokio::time::sleep(pause).await;
                    login = self.current(method)?;
                }
                answer => return answer,
            }
        }
    }

    async fn call_once(&self, login: &Login, method: &str, params: &[Value]) -> Result<Value, Error> {
        let session = Value::String(login.reference.expose().to_owned());
        let params = std::iter::once(&session).chain(params);
        self.inner.rpc.call(&login.master, method, params, &[login.reference.expose()]).await
    }

    /// A session in place of `dead`: the one that another call has made meanwhile, or a new one.
    async fn renew(&self, dead: &Arc<Login>, method: &str) -> Result<Arc<Login>, Error> {
        let inner = &self.inner;
        let _one_at_a_time = inner.renewal.lock().await;
        let current = self.current(method)?;
        if !Arc::ptr_eq(&current, dead) {
            return Ok(current);
        }
        tracing::debug!(pool = %inner.endpoint, "the session is no longer valid, logging in again");
        let fresh = Arc::new(log_in(&inner.rpc, &inner.endpoint, dead.master.clone(), &inner.originator).await?);
        if self.install(&fresh) {
            return Ok(fresh);
        }
        // Logged out while the new session was made: end that one, too. Best effort; the pool drops it in a day.
        let _ = self.call_once(&fresh, "session.logout", &[]).await;
        Err(Error::LoggedOut { method: method.to_owned() })
    }

    /// Makes `fresh` the session, unless the owner has logged out.
    fn install(&self, fresh: &Arc<Login>) -> bool {
        match &mut *self.state_mut() {
            State::LoggedIn(login) => {
                *login = Arc::clone(fresh);
                true
            }
            State::LoggedOut => false,
        }
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.inner.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.inner.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs in at `at`, or at the master it names.
async fn log_in(rpc: &Rpc, endpoint: &Endpoint, mut at: Address, originator: &str) -> Result<Login, Error> {
    const METHOD: &str = "session.login_with_password";
    let Some(credentials) = &endpoint.credentials else {
        return Err(Error::NoCredentials { address: at.to_string() });
    };
    let (user, password) = (credentials.user.as_str(), credentials.password.as_str());
    let params = params![user, password, API_VERSION, originator];
    for _ in 0..MAX_HOSTS {
        match rpc.call(&at, METHOD, &params, &[password]).await {
            Err(Error::Api(ApiError::HostIsSlave { master })) => at = at.at(&master),
            Err(e) => return Err(e),
            Ok(Value::String(reference)) if !reference.is_empty() => {
                return Ok(Login { master: at, reference: SessionRef::new(reference) });
            }
            Ok(other) => {
                let reason = format!("{} where a session belongs", other.kind());
                return Err(Error::decode(METHOD, DecodeError::new(reason)));
            }
        }
    }
    Err(Error::NoMaster { last: at.to_string() })
}

fn read_record<T: Record>(record: Value) -> Result<T, DecodeError> {
    match record {
        Value::Struct(fields) => T::from_fields(fields),
        other => Err(DecodeError::new(format!("{} where a record belongs", other.kind()))),
    }
}
