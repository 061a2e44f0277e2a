//! AWS Signature Version 4 in a header, as Amazon S3 wants it: paths are encoded once, and nothing in them is resolved.
//!
//! Bodies are not signed, because they stream: `UNSIGNED-PAYLOAD` stands for them. What a guest says of its body in
//! `x-amz-checksum-*` is a header like others, and so covered. A guest that knows the hash of its body may set
//! `x-amz-content-sha256` itself; the store compares.

use super::credential::AwsKey;
use hmac::{Hmac, KeyInit, Mac};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use url::Url;

const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const CONTENT: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// What a proxy on the way may change or take out.
const NOT_SIGNED: &[&str] =
    &["accept-encoding", "connection", "expect", "te", "trailer", "transfer-encoding", "user-agent", "x-amzn-trace-id"];

/// All but the letters that no URL needs to encode.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const ENCODED_IN_PATHS: &AsciiSet = &ENCODED.remove(b'/');

/// Signs a request with these headers, which are added to. The key's parts are printable.
pub(super) fn sign(key: &AwsKey, method: &http::Method, url: &Url, headers: &mut HeaderMap, now: Timestamp) {
    let moment = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let day = &moment[..8];
    headers.insert(DATE, header(&moment));
    if !headers.get(CONTENT).is_some_and(|hash| hash.len() == 64 && hash.as_bytes().iter().all(u8::is_ascii_hexdigit)) {
        headers.insert(CONTENT, HeaderValue::from_static("UNSIGNED-PAYLOAD"));
    }
    // One of the guest's would be another's.
    headers.remove(TOKEN);
    if let Some(token) = &key.session_token {
        let mut token = header(token);
        token.set_sensitive(true);
        headers.insert(TOKEN, token);
    }

    let (request, signed) = canonical(method, url, headers);
    let scope = format!("{day}/{}/{}/aws4_request", key.region, key.service);
    let to_sign = format!("AWS4-HMAC-SHA256\n{moment}\n{scope}\n{}", hex(&Sha256::digest(&request)));
    let mut signing_key = format!("AWS4{}", key.secret_key).into_bytes();
    for part in [day, &key.region, &key.service, "aws4_request", &to_sign] {
        signing_key = hmac(&signing_key, part);
    }
    let mut authorization = header(&format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={signed}, Signature={}",
        key.access_key,
        hex(&signing_key)
    ));
    authorization.set_sensitive(true);
    headers.insert(AUTHORIZATION, authorization);
}

/// The request as both sides write it down, and the names of the headers that it covers.
fn canonical(method: &http::Method, url: &Url, headers: &HeaderMap) -> (Vec<u8>, String) {
    let mut lines: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    lines.insert("host", url.authority().as_bytes().to_vec());
    for (name, value) in headers {
        if !NOT_SIGNED.contains(&name.as_str()) {
            let line = lines.entry(name.as_str()).or_default();
            if !line.is_empty() {
                line.push(b',');
            }
            let mut words = value.as_bytes().split(|byte| *byte == b' ').filter(|word| !word.is_empty());
            line.extend_from_slice(words.next().unwrap_or_default());
            words.for_each(|word| line.extend(std::iter::once(&b' ').chain(word)));
        }
    }
    let signed = lines.keys().copied().collect::<Vec<_>>().join(";");
    let content = headers.get(CONTENT).map_or(&b""[..], HeaderValue::as_bytes);

    let mut written = format!("{method}\n{}\n{}\n", encode(url.path(), ENCODED_IN_PATHS), query(url)).into_bytes();
    for (name, value) in &lines {
        written.extend_from_slice(name.as_bytes());
        written.push(b':');
        written.extend_from_slice(value);
        written.push(b'\n');
    }
    written.push(b'\n');
    written.extend_from_slice(signed.as_bytes());
    written.push(b'\n');
    written.extend_from_slice(content);
    (written, signed)
}

/// The query, its parts encoded in the one way and in order.
fn query(url: &Url) -> String {
    let parts = url.query().unwrap_or_default().split('&').filter(|part| !part.is_empty());
    let mut parts: Vec<(String, String)> = parts
        .map(|part| part.split_once('=').unwrap_or((part, "")))
        .map(|(name, value)| (encode(name, ENCODED), encode(value, ENCODED)))
        .collect();
    parts.sort();
    parts.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

/// What is encoded somehow, encoded in the one way.
fn encode(text: &str, set: &'static AsciiSet) -> String {
    percent_encode(&percent_decode_str(text).collect::<Vec<u8>>(), set).to_string()
}

fn header(printable: &str) -> HeaderValue {
    // Never the other: every part was looked at when the credential was made.
    HeaderValue::from_str(printable).unwrap_or(HeaderValue::from_static(""))
}

fn hmac(key: &[u8], message: &str) -> Vec<u8> {
    // A key of any length will do.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Vec::new() };
    mac.update(message.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// The `Authorization` of a request to `examplebucket` with the key of Amazon's examples, at their moment.
    fn signed(method: http::Method, path: &str, own: &[(&'static str, &str)]) -> String {
        let key = AwsKey {
            access_key: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            session_token: None,
            region: "us-east-1".to_owned(),
            service: "s3".to_owned(),
        };
        let url = Url::parse(&format!("https://examplebucket.s3.amazonaws.com{path}")).expect("a URL");
        let mut headers: HeaderMap =
            own.iter().map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value"))).collect();
        sign(&key, &method, &url, &mut headers, "2013-05-24T00:00:00Z".parse().expect("a moment"));
        headers[AUTHORIZATION].to_str().expect("printable").to_owned()
    }

    /// "Examples: Signature Calculations" of "Authenticating Requests: Using the Authorization Header", Amazon S3 API.
    #[test]
    fn amazons_examples_have_amazons_signatures() {
        let get = || http::Method::GET;
        let object = signed(get(), "/test.txt", &[("range", "bytes=0-9"), ("x-amz-content-sha256", EMPTY)]);
        assert_eq!(
            object,
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
             SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, \
             Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        let own = [
            ("date", "Fri, 24 May 2013 00:00:00 GMT"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ("x-amz-content-sha256", "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"),
        ];
        let put = signed(http::Method::PUT, "/test$file.text", &own);
        assert!(put.ends_with("98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"), "{put}");
        let lifecycle = signed(get(), "/?lifecycle", &[("x-amz-content-sha256", EMPTY)]);
        assert!(lifecycle.ends_with("fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"), "{lifecycle}");
        let list = signed(get(), "/?max-keys=2&prefix=J", &[("x-amz-content-sha256", EMPTY)]);
        assert!(list.ends_with("34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"), "{list}");
    }

    #[test]
    fn one_signature_stands_for_every_way_to_write_the_same_request() {
        let own = [("x-amz-meta-a", "two   words "), ("user-agent", "any")];
        let expected = signed(http::Method::GET, "/a%20b%2Bc?prefix=x%2Fy&list-type=2", &own);
        let same = signed(http::Method::GET, "/a%20b+c?list-type=2&prefix=x/y", &[("x-amz-meta-a", "two words")]);
        assert_eq!(expected, same);
        assert!(expected.contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-meta-a,"), "{expected}");
    }

    #[test]
    fn a_guests_word_on_its_body_is_covered_and_its_token_is_not_used() {
        let plain = signed(http::Method::PUT, "/a", &[("x-amz-checksum-crc32c", "AAAAAA==")]);
        assert!(plain.contains("x-amz-checksum-crc32c;"), "{plain}");
        assert_ne!(plain, signed(http::Method::PUT, "/a", &[("x-amz-checksum-crc32c", "AAAAAQ==")]));
        let token = [("x-amz-checksum-crc32c", "AAAAAA=="), ("x-amz-security-token", "another's")];
        assert_eq!(plain, signed(http::Method::PUT, "/a", &token));
    }
}
