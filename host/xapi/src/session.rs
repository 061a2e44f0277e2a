//! A session at a pool's master: login, calls, re-login, logout.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::api_error::ApiError;
use crate::decode::{self, DecodeError};
use crate::endpoint::{Address, Endpoint, StreamNetwork};
use crate::error::Error;
use crate::params;
use crate::records::{Host, Pool, Record};
use crate::reference::{Ref, SessionRef};
use crate::retry::{is_idempotent, pause_before, pause_while_full};
use crate::route::Remembered;
use crate::rpc::Rpc;
use crate::tls::Tls;
use crate::value::{Timestamp, Value};

/// The version of the API that clients have named at login ever since.
const API_VERSION: &str = "1.0";

/// How many hosts are asked for the master. One member is enough to find it; the rest is for a change of master in
/// between.
const MAX_HOSTS: usize = 3;

/// How often a call is made at most, whatever masters a pool names.
const MOST_ATTEMPTS: usize = 10;

/// How long a host may take to say whether it is the master. A real one takes five seconds to refuse a password.
const PROBE: Duration = Duration::from_secs(20);

/// A session at a pool. Cheap to clone; all clones are the same session.
///
/// It belongs to a runtime of tokio. A session that expired is logged in again by itself, once per call, and the
/// call is repeated: XAPI refuses a dead session before it does anything. A pool whose master changed is followed to the
/// new one: the addresses of its hosts are remembered from the login on. Log out at the end, or the pool keeps the session
/// for a day.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: Endpoint,
    originator: String,
    /// Shared with the tasks that look for a master.
    rpc: Arc<Rpc>,
    state: RwLock<State>,
    /// Whether a call was last given up because its host could not be reached: until one gets an answer the others are not
    /// repeated either, or whoever tidies up behind a dead host would wait for it once per call.
    gave_up: AtomicBool,
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
    /// Where the endpoint's host cannot be reached, the hosts are asked that an earlier session of this endpoint, or of a
    /// clone of it, has seen in the pool.
    ///
    /// `originator` names the program; XAPI counts and limits sessions by it.
    pub async fn login(endpoint: &Endpoint, originator: &str) -> Result<Self, Error> {
        let rpc = Arc::new(Rpc::new(endpoint)?);
        let login = match log_in(&rpc, endpoint, endpoint.address.clone(), originator).await {
            Err(e) if e.was_not_sent() => find_master(&rpc, endpoint, &endpoint.address, originator).await.ok_or(e)?,
            other => other?,
        };
        let login = Arc::new(login);
        let inner = Inner {
            endpoint: endpoint.clone(),
            originator: originator.to_owned(),
            rpc,
            state: RwLock::new(State::LoggedIn(Arc::clone(&login))),
            gave_up: AtomicBool::new(false),
            renewal: tokio::sync::Mutex::new(()),
            route: Remembered::default(),
        };
        let session = Self { inner: Arc::new(inner) };
        session.learn_members(&login).await;
        Ok(session)
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
    /// skipped. A failed connection is tried again for calls that change nothing (`get_*`, `list_*`); for others only if the
    /// host cannot have seen the call. One that has too many tasks is asked again for about a minute.
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
        let (mut renewed, mut attempt, mut found_full) = (false, 0, 0);
        loop {
            let answer = self.call_once(&login, method, params).await;
            if !matches!(answer, Err(Error::Transport { .. })) {
                self.inner.gave_up.store(false, Relaxed);
            }
            let error = match answer {
                Err(error) => error,
                answer => return answer,
            };
            match error {
                // Refused before anything was done.
                Error::Api(ApiError::SessionInvalid | ApiError::HostIsSlave { .. }) if !renewed => {
                    renewed = true;
                    login = self.renew(&login, method).await?;
                }
                Error::Api(ApiError::TooManyPendingTasks) => {
                    found_full += 1;
                    let Some(pause) = pause_while_full(found_full) else { return Err(error) };
                    tracing::debug!(method, found_full, "the host has too many tasks, the call is repeated");
                    tokio::time::sleep(pause).await;
                }
                Error::Transport { .. } if error.was_not_sent() || is_idempotent(method) => {
                    attempt += 1;
                    let gave_up = &self.inner.gave_up;
                    let pause = pause_before(attempt).filter(|_| !gave_up.load(Relaxed));
                    match pause {
                        Some(pause) => tokio::time::sleep(pause).await,
                        None => gave_up.store(true, Relaxed),
                    }
                    let lost = login;
                    // A pool may need longer for another master than anybody waits, so each call looks for one.
                    login = match error.was_not_sent() {
                        true => self.follow_master(&lost, method).await?,
                        false => self.current(method)?,
                    };
                    if pause.is_none() && (attempt > MOST_ATTEMPTS || Arc::ptr_eq(&login, &lost)) {
                        return Err(error);
                    }
                    tracing::debug!(method, attempt, %error, "the connection failed, the call is repeated");
                }
                error => return Err(error),
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
        let fresh = log_in(&inner.rpc, &inner.endpoint, dead.master.clone(), &inner.originator).await?;
        self.replace(dead, fresh, method).await
    }

    /// The session after the master of `lost` could not be reached: at another host if that is the master now, else the
    /// same.
    async fn follow_master(&self, lost: &Arc<Login>, method: &str) -> Result<Arc<Login>, Error> {
        let inner = &self.inner;
        let _one_at_a_time = inner.renewal.lock().await;
        let current = self.current(method)?;
        if !Arc::ptr_eq(&current, lost) {
            return Ok(current);
        }
        match find_master(&inner.rpc, &inner.endpoint, &lost.master, &inner.originator).await {
            Some(fresh) => self.replace(lost, fresh, method).await,
            None => Ok(current),
        }
    }

    /// Makes `fresh` the session in place of `old`.
    async fn replace(&self, old: &Login, fresh: Login, method: &str) -> Result<Arc<Login>, Error> {
        let fresh = Arc::new(fresh);
        if !self.install(&fresh) {
            // Logged out while the new session was made: end that one, too. Best effort; the pool drops it in a day.
            let _ = self.call_once(&fresh, "session.logout", &[]).await;
            return Err(Error::LoggedOut { method: method.to_owned() });
        }
        self.inner.gave_up.store(false, Relaxed);
        if old.master != fresh.master {
            // It tells where streams go for the master that was.
            *self.inner.route.lock().await = None;
            tracing::info!(pool = %self.inner.endpoint, master = %fresh.master, "the pool has another master");
            // Where sessions outlive a change of master, the old one would stay for a day.
            let old = Login { master: fresh.master.clone(), reference: old.reference.clone() };
            let _ = self.call_once(&old, "session.logout", &[]).await;
            self.learn_members(&fresh).await;
        }
        Ok(fresh)
    }

    /// Remembers where the pool's hosts are, for when the master is gone, and the certificates of those that a pin would
    /// not believe. Without them the session serves as long as its master does.
    async fn learn_members(&self, login: &Login) {
        let endpoint = &self.inner.endpoint;
        let learnt: Result<(), Error> = async {
            let hosts = self.call_once(login, "host.get_all_records", &[]).await?;
            let hosts = hosts.as_struct().into_iter().flatten();
            let addresses = hosts.filter_map(|(host, record)| {
                let address = record.as_struct()?.get("address")?.as_str().filter(|address| !address.is_empty())?;
                Some((host, login.master.at(address)))
            });
            let members: Vec<(&String, Address)> = addresses.collect();
            endpoint.remember_members(members.iter().map(|(_, address)| address.clone()).collect());
            for (host, _) in members.iter().filter(|(_, address)| endpoint.tls.is_pinned() && *address != login.master)
            {
                let pem = self.call_once(login, "host.get_server_certificate", &params![host.as_str()]).await?;
                endpoint.tls.believe_as_well(pem.as_str().unwrap_or_default());
            }
            Ok(())
        }
        .await;
        if let Err(error) = learnt {
            tracing::debug!(pool = %endpoint, %error, "the pool's other hosts are not known");
        }
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
    for _ in 0..MAX_HOSTS {
        match log_in_once(rpc, endpoint, &at, originator).await {
            Err(Error::Api(ApiError::HostIsSlave { master })) => at = at.at(&master),
            other => return other,
        }
    }
    Err(Error::NoMaster { last: at.to_string() })
}

async fn log_in_once(rpc: &Rpc, endpoint: &Endpoint, at: &Address, originator: &str) -> Result<Login, Error> {
    const METHOD: &str = "session.login_with_password";
    let Some(credentials) = &endpoint.credentials else {
        return Err(Error::NoCredentials { address: at.to_string() });
    };
    let (user, password) = (credentials.user.as_str(), credentials.password.as_str());
    let params = params![user, password, API_VERSION, originator];
    match rpc.call(at, METHOD, &params, &[password]).await? {
        Value::String(reference) if !reference.is_empty() => {
            Ok(Login { master: at.clone(), reference: SessionRef::new(reference) })
        }
        other => {
            let reason = format!("{} where a session belongs", other.kind());
            Err(Error::decode(METHOD, DecodeError::new(reason)))
        }
    }
}

/// Logs in at the master that the pool has in place of `lost`, which cannot be reached. All hosts that are known are asked
/// at once, each once, and so are those that they name; only a master gives a session.
async fn find_master(rpc: &Arc<Rpc>, endpoint: &Endpoint, lost: &Address, originator: &str) -> Option<Login> {
    let mut asked = vec![lost.clone()];
    let mut asking = JoinSet::new();
    let mut next = endpoint.known_hosts();
    loop {
        for at in next.drain(..) {
            if !asked.contains(&at) {
                asked.push(at.clone());
                let (rpc, endpoint, originator) = (Arc::clone(rpc), endpoint.clone(), originator.to_owned());
                asking.spawn(async move {
                    let login = timeout(PROBE, log_in_once(&rpc, &endpoint, &at, &originator)).await;
                    (at, login)
                });
            }
        }
        let (at, answer) = asking.join_next().await?.ok()?;
        match answer {
            Ok(Ok(login)) => return Some(login),
            Ok(Err(Error::Api(ApiError::HostIsSlave { master }))) => next.push(at.at(&master)),
            Ok(Err(error)) => tracing::debug!(host = %at, %error, "asked for the master in vain"),
            Err(_) => tracing::debug!(host = %at, "asked for the master, and got no answer"),
        }
    }
}

fn read_record<T: Record>(record: Value) -> Result<T, DecodeError> {
    match record {
        Value::Struct(fields) => T::from_fields(fields),
        other => Err(DecodeError::new(format!("{} where a record belongs", other.kind()))),
    }
}
