//! Doors for the fuzz targets under `tests/fuzz`: each takes bytes from outside and panics if what has to hold of its
//! parser does not. No part of the interface.

use crate::endpoint::Address;
use crate::stream::head;
use crate::xmlrpc;

/// The head of an HTTP answer. It ends where its parser says, whatever follows, and no byte sooner; a redirect is
/// followed to `http` or `https` and never out of TLS, or refused without a word of its path and query.
pub fn response_head(bytes: &[u8]) {
    let Ok(Some(head)) = head::parse(bytes) else { return };
    assert!(head.length <= bytes.len());
    assert_eq!(head::parse(&bytes[..head.length]), Ok(Some(head.clone())));
    assert_eq!(head::parse(&bytes[..head.length - 1]), Ok(None));

    let from = Address { tls: true, host: "xen1".to_owned(), port: 443 };
    match head::redirect_target(&from, head.location.as_deref()) {
        Ok(target) => assert!(target.tls),
        Err((location, _)) => assert!(!location.contains('?')),
    }
}

/// The answer to a call: no panic, and no stack that grows with it.
pub fn xmlrpc_response(bytes: &[u8]) {
    // Whether it is one does not matter here.
    let _ = xmlrpc::decode_response(bytes);
}
