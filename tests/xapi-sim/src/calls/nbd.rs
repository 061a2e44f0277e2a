//! What XAPI says about its NBD servers.

use super::cbt;
use super::vdi::managed;
use crate::error::ApiResult;
use crate::state::State;
use crate::tls::HOST_NAME;
use crate::value::Value;

/// How the NBD servers of a pool talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Security {
    /// Nothing is told before TLS.
    Tls,
    Plain,
}

/// By the purposes of the pool's networks, of which it has one kind at most. `None`: every connection is closed at once.
pub(crate) fn security(state: &State) -> Option<Security> {
    state.db.table("network").find_map(|(network, _)| security_of(state, network))
}

fn security_of(state: &State, network: &str) -> Option<Security> {
    let purposes = state.db.find("network", network)?.list("purpose");
    purposes.iter().find_map(|purpose| match purpose.as_str() {
        "nbd" => Some(Security::Tls),
        "insecure_nbd" => Some(Security::Plain),
        _ => None,
    })
}

/// One record for each address at which a disk can be read: those of the hosts that see it, on networks with the purpose.
/// Without such a network it is an empty set, not an error.
pub(super) fn info(state: &State, vdi: &str, session: &str) -> ApiResult<Value> {
    let row = managed(state, vdi)?;
    cbt::assert_has_data(row, vdi)?;
    // A bearer secret: whoever has it may read everything that the session may.
    let export_name = format!("/{}?session_id={session}", row.str("uuid"));
    let interfaces = state.db.table("PIF").filter(|(_, pif)| {
        pif.bool("currently_attached")
            && !pif.str("IP").is_empty()
            && security_of(state, pif.str("network")).is_some()
            && state.sees(pif.str("host"), row.str("SR"))
    });
    let records = interfaces.filter_map(|(_, pif)| {
        let host = state.hosts.iter().find(|host| host.reference == pif.str("host"))?;
        Some(Value::map([
            ("exportname", Value::from(export_name.as_str())),
            ("address", pif.str("IP").into()),
            ("port", i64::from(host.nbd.port()).into()),
            ("cert", state.certificate_pem.as_str().into()),
            ("subject", HOST_NAME.into()),
        ]))
    });
    Ok(Value::Array(records.collect()))
}
