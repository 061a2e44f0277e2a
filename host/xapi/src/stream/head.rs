//! The heads of HTTP/1.1 requests and responses. No sockets.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::Url;

use crate::endpoint::Address;

/// XAPI refuses a request whose head is larger, with a 431.
const MAX_REQUEST_HEAD: usize = 1024;

/// Largest response head that is read.
pub(super) const MAX_RESPONSE_HEAD: usize = 16 * 1024;

const MAX_HEADERS: usize = 64;

/// What is left as it is in a query argument: the characters of references and uuids.
const ARGUMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b':');

/// Which way the bytes of a disk go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Export,
    Import,
}

impl Direction {
    /// Verb and path of the request. Errors name it so: without the query, which holds the session.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Export => "GET /export_raw_vdi",
            Self::Import => "PUT /import_raw_vdi",
        }
    }
}

/// A request for a disk stream.
pub(super) struct Request {
    pub(super) direction: Direction,
    pub(super) query: Vec<(&'static str, String)>,
    /// Exact number of body bytes. XAPI refuses any transfer encoding, and a VHD stream without a length is taken to
    /// be as long as the disk. Only what tells its own end goes without.
    pub(super) length: Option<u64>,
}

impl Request {
    /// The head's bytes; `None` if it is larger than XAPI takes.
    pub(super) fn encode(&self, at: &Address) -> Option<Vec<u8>> {
        let mut head = self.direction.name().to_owned();
        for (n, (name, value)) in self.query.iter().enumerate() {
            head.push(if n == 0 { '?' } else { '&' });
            head.extend([name, "="]);
            head.extend(utf8_percent_encode(value, ARGUMENT));
        }
        head.push_str(&format!(" HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n"));
        if let Some(length) = self.length {
            head.push_str(&format!("Content-Length: {length}\r\n"));
        }
        head.push_str("\r\n");
        (head.len() <= MAX_REQUEST_HEAD).then(|| head.into_bytes())
    }
}

/// A response head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) location: Option<String>,
    /// Length of the head itself; what follows is the body.
    pub(crate) length: usize,
}

/// Reads a response head; `None` while it is incomplete.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Head>, String> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => {
            let status = response.code.ok_or("a head without a status")?;
            let location = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case("location"));
            let location = location.map(|h| String::from_utf8_lossy(h.value).trim().to_owned());
            Ok(Some(Head { status, location, length }))
        }
        Ok(httparse::Status::Partial) if bytes.len() >= MAX_RESPONSE_HEAD => {
            Err(format!("a head of more than {MAX_RESPONSE_HEAD} bytes"))
        }
        Ok(httparse::Status::Partial) => Ok(None),
        Err(e) => Err(format!("no HTTP response ({e})")),
    }
}

/// Where a redirect leads, or why it is not followed. The path is ours: XAPI repeats the request's own.
pub(crate) fn redirect_target(from: &Address, location: Option<&str>) -> Result<Address, (String, String)> {
    let Some(location) = location else {
        return Err(("nowhere".to_owned(), "the answer has no Location".to_owned()));
    };
    // A location repeats the query and with it the session, so no message shows more than its host.
    let unusable = || ("an unusable address".to_owned(), "it is not an http or https URL".to_owned());
    let target = Url::parse(location).ok().as_ref().and_then(Address::of_url).ok_or_else(unusable)?;
    if from.tls && !target.tls {
        return Err((target.rpc_url(), "it would send the session unencrypted".to_owned()));
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    /// Bytes that are nearly the head of an answer.
    fn nearly_a_head() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            Just("HTTP/1.1 200 OK".to_owned()),
            Just("HTTP/1.1 302 Found".to_owned()),
            Just("connection: close".to_owned()),
            Just(String::new()),
            "(?i)location: (https?|ftp)://[a-z0-9.:\\[\\]]{0,20}(/[a-z?=:]{0,20})?",
            "[ -~]{0,30}",
        ];
        let lines = prop::collection::vec((line, prop_oneof![Just("\r\n"), Just("\n"), Just("\r")]), 0..8);
        let noise = prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..3);
        (lines, noise).prop_map(|(lines, noise)| {
            let text: String = lines.iter().flat_map(|(line, end)| [line.as_str(), end]).collect();
            let mut bytes = text.into_bytes();
            for (at, byte) in noise {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            crate::fuzz::response_head(&bytes);
        }

        #[test]
        fn what_is_nearly_a_head_ends_where_it_says(bytes in nearly_a_head()) {
            crate::fuzz::response_head(&bytes);
        }
    }

    fn address(tls: bool) -> Address {
        Address { tls, host: "xen1".to_owned(), port: if tls { 443 } else { 8080 } }
    }

    #[test]
    fn a_request_has_an_exact_length_and_no_encoding() {
        let request = Request {
            direction: Direction::Import,
            query: [("format", "vhd"), ("vdi", "OpaqueRef:1-2"), ("task_id", "DummyRef:|a b")]
                .map(|(name, value)| (name, value.to_owned()))
                .to_vec(),
            length: Some(42),
        };
        let head = String::from_utf8(request.encode(&address(false)).expect("short")).expect("text");
        expect![[r#"
            PUT /import_raw_vdi?format=vhd&vdi=OpaqueRef:1-2&task_id=DummyRef:%7Ca%20b HTTP/1.1
            Host: xen1:8080
            Connection: close
            Content-Length: 42

        "#]]
        .assert_eq(&head.replace("\r\n", "\n"));
    }

    #[test]
    fn four_references_fit_and_an_endless_one_is_refused() {
        let reference = format!("OpaqueRef:{}", "0".repeat(36));
        let query = ["vdi", "base", "session_id", "task_id"].map(|name| (name, reference.clone())).to_vec();
        let request = Request { direction: Direction::Export, query, length: None };
        assert!(request.encode(&address(true)).expect("fits").len() < 400);

        let request = Request { query: vec![("vdi", "x".repeat(2000))], ..request };
        assert_eq!(request.encode(&address(true)), None);
    }

    #[test]
    fn a_response_head_is_read_when_it_is_whole() {
        let whole = b"HTTP/1.1 302 Found\r\nLOCATION: https://10.0.0.2/x?y\r\n\r\nbody";
        for end in 0..whole.len() - 4 {
            assert_eq!(parse(&whole[..end]).expect("a beginning"), None, "{end}");
        }
        let head = parse(whole).expect("parses").expect("whole");
        assert_eq!((head.status, head.location.as_deref()), (302, Some("https://10.0.0.2/x?y")));
        assert_eq!(&whole[head.length..], b"body");
        parse(b"SSH-2.0-OpenSSH").expect_err("another protocol");
        parse(&[b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'x'; MAX_RESPONSE_HEAD]].concat()).expect_err("endless");
    }

    #[test]
    fn a_redirect_is_followed_to_its_host_but_never_out_of_tls() {
        let target = redirect_target(&address(true), Some("https://10.0.0.2/export_raw_vdi?session_id=OpaqueRef:s"));
        assert_eq!(target.expect("followed").to_string(), "10.0.0.2");
        redirect_target(&address(false), Some("https://10.0.0.2/")).expect("into TLS is fine");
        for bad in [None, Some("/relative?session_id=s3cret"), Some("ftp://s3cret/"), Some("http://10.0.0.2/?s3cret")] {
            let (location, reason) = redirect_target(&address(true), bad).expect_err("not followed");
            assert!(!format!("{location}{reason}").contains("s3cret"), "{location}");
        }
    }
}
