//! XML-RPC on the wire: a call to text, a response to values. No sockets.
//!
//! ```text
//! <methodCall><methodName>M</methodName><params><param>VALUE</param>…</params></methodCall>
//! <methodResponse><params><param>VALUE</param></params></methodResponse>
//! <methodResponse><fault>VALUE</fault></methodResponse>
//! VALUE = <value>text</value> | <value><TYPE>…</TYPE></value>
//! ```

use std::collections::BTreeMap;

use quick_xml::Reader;
use quick_xml::events::{BytesEnd, BytesRef, BytesStart, Event};

use crate::text::mask_references;
use crate::value::{Value, format_date, parse_date};

/// Deepest nesting of values that is read. A record in an event list is four deep; the bound keeps a hostile
/// server from exhausting the stack.
const MAX_DEPTH: usize = 64;

/// Bytes of the document shown around an error.
const SNIPPET: usize = 60;

/// Text that XML 1.0 cannot carry, or a number XML-RPC has no form for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a value has {0}, which XML cannot carry; remove it")]
pub(crate) struct Unsendable(String);

/// What is wrong with a document, where, and what stands there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at byte {position}, near \"{snippet}\"")]
pub(crate) struct Malformed {
    pub(crate) reason: String,
    pub(crate) position: u64,
    /// The text around the error, with references masked.
    pub(crate) snippet: String,
}

/// A response, before its envelope is opened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Response {
    /// The value of `<params>`.
    Value(Value),
    /// The value of `<fault>`: XAPI sends one only for calls it cannot dispatch.
    Fault(Value),
}

/// The document that calls `method` with `params`.
pub(crate) fn encode_call<'a>(method: &str, params: impl IntoIterator<Item = &'a Value>) -> Result<String, Unsendable> {
    let mut out = String::from("<?xml version=\"1.0\"?><methodCall><methodName>");
    encode_text(method, &mut out)?;
    out.push_str("</methodName><params>");
    for param in params {
        out.push_str("<param>");
        encode_value(param, &mut out)?;
        out.push_str("</param>");
    }
    out.push_str("</params></methodCall>");
    Ok(out)
}

/// Appends `<value>…</value>`.
pub(crate) fn encode_value(value: &Value, out: &mut String) -> Result<(), Unsendable> {
    out.push_str("<value>");
    match value {
        Value::Nil => out.push_str("<nil/>"),
        Value::Bool(b) => out.push_str(if *b { "<boolean>1</boolean>" } else { "<boolean>0</boolean>" }),
        // Digits as text: taken by every release, and the way XAPI writes 64 bits itself.
        Value::Int(n) => element("string", &n.to_string(), out)?,
        Value::Double(x) if x.is_finite() => element("double", &x.to_string(), out)?,
        Value::Double(x) => return Err(Unsendable(format!("the number {x}"))),
        Value::String(text) => element("string", text, out)?,
        Value::DateTime(date) => element("dateTime.iso8601", &format_date(*date), out)?,
        Value::Array(items) => {
            out.push_str("<array><data>");
            for item in items {
                encode_value(item, out)?;
            }
            out.push_str("</data></array>");
        }
        Value::Struct(members) => {
            out.push_str("<struct>");
            for (name, member) in members {
                out.push_str("<member>");
                element("name", name, out)?;
                encode_value(member, out)?;
                out.push_str("</member>");
            }
            out.push_str("</struct>");
        }
    }
    out.push_str("</value>");
    Ok(())
}

fn element(tag: &str, text: &str, out: &mut String) -> Result<(), Unsendable> {
    out.extend(["<", tag, ">"]);
    encode_text(text, out)?;
    out.extend(["</", tag, ">"]);
    Ok(())
}

/// Escapes text. A carriage return goes as a character reference, because XML parsers turn a plain one into a
/// line feed. XML 1.0 has no form at all for other control characters, and XAPI would drop them silently.
fn encode_text(text: &str, out: &mut String) -> Result<(), Unsendable> {
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\r' => out.push_str("&#13;"),
            '\t' | '\n' => out.push(c),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {
                return Err(Unsendable(format!("the character U+{:04X}", u32::from(c))));
            }
            _ => out.push(c),
        }
    }
    Ok(())
}

/// Reads a `<methodResponse>`.
pub(crate) fn decode_response(document: &[u8]) -> Result<Response, Malformed> {
    let text = utf8(document)?;
    let mut parser = Parser::new(text);
    parser.open("methodResponse")?;
    let kind = parser.markup()?;
    let response = if kind.opens("params") {
        parser.open("param")?;
        let value = parser.whole_value(0)?;
        parser.close("param")?;
        parser.close("params")?;
        Response::Value(value)
    } else if kind.opens("fault") {
        let value = parser.whole_value(0)?;
        parser.close("fault")?;
        Response::Fault(value)
    } else {
        return Err(parser.unexpected(&kind, "<params> or <fault>"));
    };
    parser.close("methodResponse")?;
    parser.end()?;
    Ok(response)
}

/// Reads a bare `<value>`, the form of a task's result. An empty text is the empty string, which is what XAPI
/// stores for a task that returns nothing.
pub(crate) fn decode_value(text: &str) -> Result<Value, Malformed> {
    if text.trim().is_empty() {
        return Ok(Value::String(String::new()));
    }
    let mut parser = Parser::new(text);
    let value = parser.whole_value(0)?;
    parser.end()?;
    Ok(value)
}

fn utf8(document: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(document).map_err(|e| Malformed {
        reason: "bytes that are not UTF-8".to_owned(),
        position: e.valid_up_to() as u64,
        snippet: snippet(&String::from_utf8_lossy(document), e.valid_up_to()),
    })
}

/// The text around `position`, on one line and without secrets.
fn snippet(document: &str, position: usize) -> String {
    let mut start = position.saturating_sub(SNIPPET / 2).min(document.len());
    while !document.is_char_boundary(start) {
        start -= 1;
    }
    // A reference that begins before the window would escape the mask, so the whole document is never cut in one.
    if let Some(reference) = document[..start].rfind("OpaqueRef:")
        && start - reference < 64
    {
        start = reference;
    }
    let shown: String = document[start..].chars().take(SNIPPET + 64).collect();
    let masked = mask_references(&shown);
    masked.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SNIPPET).collect()
}

/// A tag, or what stands where one was expected.
enum Markup<'a> {
    Open(BytesStart<'a>),
    Empty(BytesStart<'a>),
    Close(BytesEnd<'a>),
    Text,
    End,
}

impl Markup<'_> {
    fn opens(&self, tag: &str) -> bool {
        matches!(self, Self::Open(start) if start.name().0 == tag)
    }

    fn empties(&self, tag: &str) -> bool {
        matches!(self, Self::Empty(start) if start.name().0 == tag)
    }

    fn closes(&self, tag: &str) -> bool {
        matches!(self, Self::Close(end) if end.name().0 == tag)
    }
}

struct Parser<'a> {
    document: &'a str,
    reader: Reader<&'a [u8]>,
}

impl<'a> Parser<'a> {
    fn new(document: &'a str) -> Self {
        Self { document, reader: Reader::from_str(document) }
    }

    fn error(&self, reason: impl Into<String>) -> Malformed {
        let position = self.reader.buffer_position();
        let at = usize::try_from(position).unwrap_or(usize::MAX).min(self.document.len());
        Malformed { reason: reason.into(), position, snippet: snippet(self.document, at) }
    }

    fn unexpected(&self, found: &Markup<'_>, expected: &str) -> Malformed {
        let found = match found {
            Markup::Open(tag) | Markup::Empty(tag) => format!("<{}>", short(tag.name().0)),
            Markup::Close(tag) => format!("</{}>", short(tag.name().0)),
            Markup::Text => "text".to_owned(),
            Markup::End => "the end of the document".to_owned(),
        };
        self.error(format!("{found} where {expected} belongs"))
    }

    fn event(&mut self) -> Result<Event<'a>, Malformed> {
        match self.reader.read_event() {
            Ok(Event::DocType(_)) => Err(self.error("a document type, which XML-RPC has no use for,")),
            Ok(event) => Ok(event),
            Err(e) => {
                let position = self.reader.error_position();
                let at = usize::try_from(position).unwrap_or(usize::MAX).min(self.document.len());
                Err(Malformed { reason: syntax(&e), position, snippet: snippet(self.document, at) })
            }
        }
    }

    /// The next tag; white space, comments and the declaration before it are skipped.
    fn markup(&mut self) -> Result<Markup<'a>, Malformed> {
        loop {
            return Ok(match self.event()? {
                Event::Start(tag) => Markup::Open(tag),
                Event::Empty(tag) => Markup::Empty(tag),
                Event::End(tag) => Markup::Close(tag),
                Event::Eof => Markup::End,
                Event::Text(text) if text.trim().is_empty() => continue,
                Event::Text(_) | Event::CData(_) | Event::GeneralRef(_) => Markup::Text,
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => continue,
            });
        }
    }

    fn open(&mut self, tag: &str) -> Result<(), Malformed> {
        let found = self.markup()?;
        if found.opens(tag) { Ok(()) } else { Err(self.unexpected(&found, &format!("<{tag}>"))) }
    }

    fn close(&mut self, tag: &str) -> Result<(), Malformed> {
        let found = self.markup()?;
        if found.closes(tag) { Ok(()) } else { Err(self.unexpected(&found, &format!("</{tag}>"))) }
    }

    fn end(&mut self) -> Result<(), Malformed> {
        match self.markup()? {
            Markup::End => Ok(()),
            other => Err(self.unexpected(&other, "the end of the document")),
        }
    }

    /// A `<value>` with its tags.
    fn whole_value(&mut self, depth: usize) -> Result<Value, Malformed> {
        let start = self.markup()?;
        self.value_from(&start, depth)?.ok_or_else(|| self.unexpected(&start, "<value>"))
    }

    /// The value that `start` begins; `None` if it begins none.
    fn value_from(&mut self, start: &Markup<'_>, depth: usize) -> Result<Option<Value>, Malformed> {
        if start.opens("value") {
            self.value(depth).map(Some)
        } else if start.empties("value") {
            Ok(Some(Value::String(String::new())))
        } else {
            Ok(None)
        }
    }

    /// The content of a `<value>` whose start tag was read, and its end tag.
    fn value(&mut self, depth: usize) -> Result<Value, Malformed> {
        if depth == MAX_DEPTH {
            return Err(self.error(format!("values nested deeper than {MAX_DEPTH}")));
        }
        let mut untagged = String::new();
        let typed = loop {
            match self.event()? {
                Event::Text(text) => untagged.push_str(&text),
                Event::CData(text) => untagged.push_str(&text),
                Event::GeneralRef(reference) => untagged.push(self.resolve(&reference)?),
                Event::End(_) => return Ok(Value::String(untagged)),
                Event::Start(tag) => break self.typed(tag.name().0, depth)?,
                Event::Empty(tag) => break self.empty(tag.name().0)?,
                Event::Eof => return Err(self.unexpected(&Markup::End, "</value>")),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
            }
        };
        if !untagged.trim().is_empty() {
            return Err(self.error("text beside a typed value"));
        }
        self.close("value")?;
        Ok(typed)
    }

    /// The value inside a type tag that was just opened.
    fn typed(&mut self, tag: &str, depth: usize) -> Result<Value, Malformed> {
        match tag {
            "array" => self.array(depth),
            "struct" => self.members(depth),
            _ => {
                let text = self.text(tag)?;
                self.scalar(tag, text)
            }
        }
    }

    /// The value of a type tag without content, such as `<nil/>` and `<string/>`.
    fn empty(&self, tag: &str) -> Result<Value, Malformed> {
        match tag {
            "array" => Ok(Value::Array(Vec::new())),
            "struct" => Ok(Value::Struct(BTreeMap::new())),
            _ => self.scalar(tag, String::new()),
        }
    }

    fn scalar(&self, tag: &str, text: String) -> Result<Value, Malformed> {
        let number = text.trim();
        match tag {
            "string" => Ok(Value::String(text)),
            "nil" => Ok(Value::Nil),
            "boolean" => Ok(Value::Bool(number == "1")),
            "int" | "i4" | "i8" => number.parse().map(Value::Int).map_err(|_| self.error("an <int> without a number")),
            "double" => number.parse().map(Value::Double).map_err(|_| self.error("a <double> without a number")),
            "dateTime.iso8601" => parse_date(number).map(Value::DateTime).map_err(|_| self.error("an unknown date")),
            other => Err(self.error(format!("the unknown type <{}>", short(other)))),
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, Malformed> {
        let mut items = Vec::new();
        let data = self.markup()?;
        if data.opens("data") {
            loop {
                let next = self.markup()?;
                match self.value_from(&next, depth + 1)? {
                    Some(item) => items.push(item),
                    None if next.closes("data") => break,
                    None => return Err(self.unexpected(&next, "<value> or </data>")),
                }
            }
        } else if !data.empties("data") {
            return Err(self.unexpected(&data, "<data>"));
        }
        self.close("array")?;
        Ok(Value::Array(items))
    }

    fn members(&mut self, depth: usize) -> Result<Value, Malformed> {
        let mut members = BTreeMap::new();
        loop {
            let next = self.markup()?;
            if next.closes("struct") {
                return Ok(Value::Struct(members));
            }
            if !next.opens("member") {
                return Err(self.unexpected(&next, "<member> or </struct>"));
            }
            let name = self.markup()?;
            let name = if name.opens("name") {
                self.text("name")?
            } else if name.empties("name") {
                String::new()
            } else {
                return Err(self.unexpected(&name, "<name>"));
            };
            let value = self.whole_value(depth + 1)?;
            self.close("member")?;
            members.insert(name, value);
        }
    }

    /// Text up to the end of `tag`, as XAPI wrote it: it sends carriage returns unescaped, so line ends are kept.
    fn text(&mut self, tag: &str) -> Result<String, Malformed> {
        let mut text = String::new();
        loop {
            match self.event()? {
                Event::Text(part) => text.push_str(&part),
                Event::CData(part) => text.push_str(&part),
                Event::GeneralRef(reference) => text.push(self.resolve(&reference)?),
                Event::End(_) => return Ok(text),
                Event::Comment(_) | Event::PI(_) => {}
                Event::Eof => return Err(self.unexpected(&Markup::End, &format!("</{tag}>"))),
                _ => return Err(self.error(format!("markup inside <{tag}>"))),
            }
        }
    }

    fn resolve(&self, reference: &BytesRef<'_>) -> Result<char, Malformed> {
        match reference.resolve_char_ref() {
            Ok(Some(c)) => return Ok(c),
            Ok(None) => {}
            Err(_) => return Err(self.error("a reference to no character")),
        }
        match &**reference {
            "lt" => Ok('<'),
            "gt" => Ok('>'),
            "amp" => Ok('&'),
            "quot" => Ok('"'),
            "apos" => Ok('\''),
            other => Err(self.error(format!("the unknown entity &{};", short(other)))),
        }
    }
}

/// A tag name of the server's, bounded for a message.
fn short(name: &str) -> String {
    mask_references(&name.chars().take(32).collect::<String>())
}

/// The parser's complaint without the text it quotes, which may hold a secret.
fn syntax(error: &quick_xml::Error) -> String {
    match error {
        quick_xml::Error::Syntax(e) => format!("XML that does not parse ({e})"),
        quick_xml::Error::IllFormed(_) => "tags that do not match".to_owned(),
        _ => "XML that does not parse".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;
    use crate::value::Timestamp;

    fn decode(value: &str) -> Value {
        decode_value(value).expect(value)
    }

    fn string(text: &str) -> Value {
        Value::String(text.to_owned())
    }

    fn check_error(document: &str, expected: Expect) {
        let error = decode_response(document.as_bytes()).expect_err(document);
        expected.assert_eq(&error.to_string());
    }

    #[test]
    fn a_call_has_escaped_text_and_untagged_digits() {
        let params = [string("<a> & \"b\"\r"), Value::Int(-5), Value::Bool(true), Value::Nil];
        expect![[r#"
            <?xml version="1.0"?><methodCall><methodName>VM.start</methodName><params>
            <param><value><string>&lt;a&gt; &amp; &quot;b&quot;&#13;</string></value></param>
            <param><value><string>-5</string></value></param>
            <param><value><boolean>1</boolean></value></param>
            <param><value><nil/></value></param></params></methodCall>"#]]
        .assert_eq(&encode_call("VM.start", &params).expect("encodes").replace("<param>", "\n<param>"));
    }

    #[test]
    fn what_xml_cannot_carry_is_refused_instead_of_dropped() {
        for bad in [string("bell\u{7}"), string("\0"), string("\u{ffff}"), Value::Double(f64::NAN)] {
            encode_call("m", [&bad]).expect_err("no form in XML");
        }
    }

    #[test]
    fn values_are_read_in_every_form_hosts_send() {
        assert_eq!(decode("<value>123</value>"), string("123"));
        assert_eq!(decode("<value> kept </value>"), string(" kept "));
        assert_eq!(decode("<value></value>"), string(""));
        assert_eq!(decode("<value/>"), string(""));
        assert_eq!(decode("<value><string/></value>"), string(""));
        assert_eq!(decode("<value>a&amp;&#66;&#x43;<![CDATA[<d>]]></value>"), string("a&BC<d>"));
        assert_eq!(decode("<value>a\r\nb</value>"), string("a\r\nb"), "XAPI sends carriage returns unescaped");
        assert_eq!(decode("<value><i4>7</i4></value>"), Value::Int(7));
        assert_eq!(decode("<value><i8>-9223372036854775808</i8></value>"), Value::Int(i64::MIN));
        assert_eq!(decode("<value> <boolean>0</boolean> </value>"), Value::Bool(false));
        assert_eq!(decode("<value><double>0.5</double></value>"), Value::Double(0.5));
        assert_eq!(
            decode("<value><dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601></value>"),
            Value::DateTime(Timestamp::UNIX_EPOCH)
        );
        assert_eq!(decode("<value><array><data/></array></value>"), Value::Array(vec![]));
        assert_eq!(
            decode("<value><struct><member><name>a</name><value/></member></struct></value>"),
            Value::Struct(BTreeMap::from([("a".to_owned(), string(""))]))
        );
        assert_eq!(decode_value("").expect("a task without result"), string(""));
    }

    #[test]
    fn a_fault_is_told_from_a_value() {
        let fault = "<methodResponse><fault><value>why</value></fault></methodResponse>";
        assert_eq!(decode_response(fault.as_bytes()), Ok(Response::Fault(string("why"))));
        let value = "<?xml version='1.0'?>\n<methodResponse>\n<params><param><value>v</value></param></params>\n</methodResponse>\n";
        assert_eq!(decode_response(value.as_bytes()), Ok(Response::Value(string("v"))));
    }

    #[test]
    fn malformed_answers_are_explained_with_place_and_without_secrets() {
        check_error("", expect![[r#"the end of the document where <methodResponse> belongs at byte 0, near """#]]);
        check_error(
            "<html><body>502 Bad Gateway</body></html>",
            expect![[
                r#"<html> where <methodResponse> belongs at byte 6, near "<html><body>502 Bad Gateway</body></html>""#
            ]],
        );
        check_error(
            "<methodResponse><params><param><value>OpaqueRef:5ec7e7-1",
            expect![[r#"the end of the document where </value> belongs at byte 56, near "aram><value>OpaqueRef:…""#]],
        );
        check_error(
            "<methodResponse><params><param><value>OpaqueRef:5ec7e7-1</vulue></param></params></methodResponse>",
            expect![[
                r#"tags that do not match at byte 56, near "aram><value>OpaqueRef:…</vulue></param></params></methodResp""#
            ]],
        );
        check_error(
            "<methodResponse><params><param><value><int>many</int></value></param></params></methodResponse>",
            expect![[
                r#"an <int> without a number at byte 53, near "><param><value><int>many</int></value></param></params></met""#
            ]],
        );
        check_error(
            "<methodResponse><params><param><value>&bomb;</value></param></params></methodResponse>",
            expect![[
                r#"the unknown entity &bomb; at byte 44, near "e><params><param><value>&bomb;</value></param></params></met""#
            ]],
        );
        check_error(
            "<methodResponse><params><param><value><base64>eA==</base64></value></param></params></methodResponse>",
            expect![[
                r#"the unknown type <base64> at byte 59, near "m><value><base64>eA==</base64></value></param></params></met""#
            ]],
        );
        check_error(
            "<!DOCTYPE x><methodResponse/>",
            expect![[
                r#"a document type, which XML-RPC has no use for, at byte 12, near "<!DOCTYPE x><methodResponse/>""#
            ]],
        );
        check_error(
            "<methodResponse><params><param><value/></param></params></methodResponse>trailing",
            expect![[
                r#"text where the end of the document belongs at byte 81, near "rams></methodResponse>trailing""#
            ]],
        );
        expect![[r#"bytes that are not UTF-8 at byte 16, near "<methodResponse>��""#]]
            .assert_eq(&decode_response(b"<methodResponse>\xff\xfe").expect_err("no UTF-8").to_string());
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| {
            let open = "<value><array><data>".repeat(depth);
            let close = "</data></array></value>".repeat(depth);
            decode_value(&format!("{open}<value>x</value>{close}"))
        };
        nested(MAX_DEPTH - 1).expect("deep enough for anything real");
        let error = nested(MAX_DEPTH).expect_err("too deep");
        assert_eq!(error.reason, "values nested deeper than 64");
        nested(100_000).expect_err("no stack overflow");
    }

    /// Text that XML can carry.
    fn text() -> impl Strategy<Value = String> {
        any::<String>().prop_map(|s| {
            s.chars()
                .filter(
                    |c| !matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}'),
                )
                .collect()
        })
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Nil),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            any::<f64>().prop_filter("finite", |x| x.is_finite()).prop_map(Value::Double),
            text().prop_map(Value::String),
            (0..253_402_300_799i64)
                .prop_map(|s| Value::DateTime(Timestamp::from_second(s).expect("within the years 1970 to 9999"))),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                prop::collection::btree_map(text(), inner, 0..4).prop_map(Value::Struct),
            ]
        })
    }

    /// Integers travel as digits.
    fn on_the_wire(value: Value) -> Value {
        match value {
            Value::Int(n) => Value::String(n.to_string()),
            Value::Array(items) => Value::Array(items.into_iter().map(on_the_wire).collect()),
            Value::Struct(members) => Value::Struct(members.into_iter().map(|(k, v)| (k, on_the_wire(v))).collect()),
            other => other,
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(value in value()) {
            let mut text = String::new();
            encode_value(&value, &mut text).expect("XML can carry it");
            prop_assert_eq!(decode_value(&text), Ok(on_the_wire(value)));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_response(&bytes);
        }

        #[test]
        fn damaged_answers_never_panic(value in value(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut text = String::new();
            encode_value(&value, &mut text).expect("XML can carry it");
            let mut document = format!("<methodResponse><params><param>{text}</param></params></methodResponse>").into_bytes();
            let at = at.index(document.len());
            document[at] = byte;
            let _ = decode_response(&document);
            document.truncate(at);
            prop_assert!(decode_response(&document).is_err(), "a cut answer is an error");
        }
    }
}
