//! JSON-RPC 1.0 and 2.0; the member `jsonrpc` with the text `2.0` makes the difference.

use serde_json::{Value as Json, json};

use super::{Call, Malformed};
use crate::error::ApiError;
use crate::value::Value;

/// How to answer: the version that was spoken, and the caller's id.
#[derive(Debug)]
pub(crate) enum Reply {
    V1 { id: Json },
    V2 { id: Json },
}

pub(crate) fn parse_call(body: &[u8]) -> Result<(Call, Reply), Malformed> {
    let request: Json = serde_json::from_slice(body).map_err(|error| Malformed(error.to_string()))?;
    let id = request.get("id").cloned().unwrap_or(Json::Null);
    let reply = if request.get("jsonrpc").and_then(Json::as_str) == Some("2.0") {
        // Notifications do not exist: without an id there is nothing to answer to.
        if !(id.is_number() || id.is_string()) {
            return Err(Malformed("the id must be a number or a string".into()));
        }
        Reply::V2 { id }
    } else {
        Reply::V1 { id }
    };
    let method = request.get("method").and_then(Json::as_str).ok_or_else(|| Malformed("no method".into()))?;
    let params = match request.get("params").cloned() {
        Some(Json::Array(params)) => params.into_iter().map(Value::from_json).collect(),
        None | Some(Json::Null) => Vec::new(),
        Some(_) => return Err(Malformed("params must be an array".into())),
    };
    Ok((Call { method: method.to_owned(), params }, reply))
}

impl Reply {
    pub(crate) fn success(&self, value: &Value) -> String {
        let result = value.to_json();
        match self {
            Self::V1 { id } => json!({ "result": result, "error": null, "id": id }),
            Self::V2 { id } => json!({ "jsonrpc": "2.0", "result": result, "id": id }),
        }
        .to_string()
    }

    /// The code is always 1; what went wrong stands in `message` and `data`.
    pub(crate) fn failure(&self, error: &ApiError) -> String {
        match self {
            Self::V1 { id } => {
                let description: Vec<&str> = error.description().collect();
                json!({ "result": null, "error": description, "id": id })
            }
            Self::V2 { id } => {
                let error = json!({ "code": 1, "message": error.code, "data": error.params });
                json!({ "jsonrpc": "2.0", "error": error, "id": id })
            }
        }
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_follows_the_request() {
        let (call, reply) = parse_call(br#"{"method":"m","params":[1,"a",true,1.5],"id":3}"#).unwrap();
        assert_eq!(call.params, [Value::Int(1), Value::from("a"), Value::Bool(true), Value::Float(1.5)]);
        let error = ApiError::new("CODE", ["p"]);
        assert_eq!(reply.failure(&error), r#"{"error":["CODE","p"],"id":3,"result":null}"#);

        let (_, reply) = parse_call(br#"{"jsonrpc":"2.0","method":"m","id":"x"}"#).unwrap();
        assert_eq!(
            reply.failure(&error),
            r#"{"error":{"code":1,"data":["p"],"message":"CODE"},"id":"x","jsonrpc":"2.0"}"#
        );
        assert_eq!(reply.success(&Value::Int(4)), r#"{"id":"x","jsonrpc":"2.0","result":4}"#);
    }

    #[test]
    fn version_two_without_an_id_is_refused() {
        assert!(parse_call(br#"{"jsonrpc":"2.0","method":"m","id":null}"#).is_err());
        assert!(parse_call(br#"{"jsonrpc":"2.0","method":"m"}"#).is_err());
        assert!(parse_call(b"[]").is_err());
    }
}
