//! XML-RPC as XAPI writes and reads it: integers travel as untagged strings, only `<boolean>` is a
//! boolean, control characters are dropped on output.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use quick_xml::Reader;
use quick_xml::events::Event;

use super::{Call, Malformed};
use crate::error::ApiError;
use crate::value::Value;

/// Deeper than any XAPI record, shallow enough for the stack.
const MAX_DEPTH: usize = 64;

pub(crate) fn success(value: &Value) -> String {
    response(|out| {
        out.push_str("<struct><member><name>Status</name><value>Success</value></member><member><name>Value</name>");
        write_value(value, out);
        out.push_str("</member></struct>");
    })
}

pub(crate) fn failure(error: &ApiError) -> String {
    let description = Value::strings(error.description());
    response(|out| {
        out.push_str(
            "<struct><member><name>Status</name><value>Failure</value></member><member><name>ErrorDescription</name>",
        );
        write_value(&description, out);
        out.push_str("</member></struct>");
    })
}

/// A real XML-RPC fault; XAPI sends one only where a call has no asynchronous form.
pub(crate) fn fault(text: &str) -> String {
    let fault = Value::map([("faultCode", Value::from("0")), ("faultString", Value::from(text))]);
    let mut out = String::from("<?xml version=\"1.0\"?><methodResponse><fault>");
    write_value(&fault, &mut out);
    out.push_str("</fault></methodResponse>");
    out
}

fn response(struct_of: impl FnOnce(&mut String)) -> String {
    let mut out = String::from("<?xml version=\"1.0\"?><methodResponse><params><param><value>");
    struct_of(&mut out);
    out.push_str("</value></param></params></methodResponse>");
    out
}

/// One value as text: what `task.result` holds, whatever the client speaks.
pub(crate) fn value_text(value: &Value) -> String {
    let mut out = String::new();
    write_value(value, &mut out);
    out
}

fn write_value(value: &Value, out: &mut String) {
    out.push_str("<value>");
    match value {
        Value::Nil => out.push_str("<nil/>"),
        Value::Bool(value) => {
            let _ = write!(out, "<boolean>{}</boolean>", u8::from(*value));
        }
        Value::Int(value) => {
            let _ = write!(out, "{value}");
        }
        Value::Int32(value) => {
            let _ = write!(out, "<i4>{value}</i4>");
        }
        Value::Float(value) => {
            let _ = write!(out, "<double>{value}</double>");
        }
        Value::String(text) => escape(text, out),
        Value::DateTime(text) => {
            let _ = write!(out, "<dateTime.iso8601>{text}</dateTime.iso8601>");
        }
        Value::Array(items) => {
            out.push_str("<array><data>");
            items.iter().for_each(|item| write_value(item, out));
            out.push_str("</data></array>");
        }
        Value::Struct(members) => {
            out.push_str("<struct>");
            for (name, member) in members {
                out.push_str("<member><name>");
                escape(name, out);
                out.push_str("</name>");
                write_value(member, out);
                out.push_str("</member>");
            }
            out.push_str("</struct>");
        }
    }
    out.push_str("</value>");
}

fn escape(text: &str, out: &mut String) {
    for character in text.chars() {
        match character {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' | '\r' => out.push(character),
            control if u32::from(control) < 0x20 => {}
            other => out.push(other),
        }
    }
}

pub(crate) fn parse_call(body: &[u8]) -> Result<Call, Malformed> {
    let text = std::str::from_utf8(body).map_err(|error| Malformed(error.to_string()))?;
    let mut parser = Parser { reader: Reader::from_str(text), emptied: None };
    parser.open("methodCall")?;
    parser.open("methodName")?;
    let method = parser.text_until_close()?.trim().to_owned();
    let mut params = Vec::new();
    if parser.opens("params", "methodCall")? {
        while parser.opens("param", "params")? {
            parser.open("value")?;
            params.push(parser.value(0)?);
            parser.close("param")?;
        }
    }
    Ok(Call { method, params })
}

/// A value that stands alone.
pub(crate) fn parse_value(text: &str) -> Result<Value, Malformed> {
    let mut parser = Parser { reader: Reader::from_str(text), emptied: None };
    parser.open("value")?;
    parser.value(0)
}

enum Token {
    Open(String),
    Close(String),
    Text(String),
    End,
}

struct Parser<'a> {
    reader: Reader<&'a [u8]>,
    /// An empty element that has opened and not closed yet.
    emptied: Option<String>,
}

impl Parser<'_> {
    fn next(&mut self) -> Result<Token, Malformed> {
        if let Some(name) = self.emptied.take() {
            return Ok(Token::Close(name));
        }
        loop {
            let event = self.reader.read_event().map_err(|error| Malformed(error.to_string()))?;
            return Ok(match event {
                Event::Start(tag) => Token::Open(tag.name().as_ref().to_owned()),
                Event::Empty(tag) => {
                    let name = tag.name().as_ref().to_owned();
                    self.emptied = Some(name.clone());
                    Token::Open(name)
                }
                Event::End(tag) => Token::Close(tag.name().as_ref().to_owned()),
                Event::Text(text) => Token::Text(text.into_inner().into_owned()),
                Event::CData(text) => Token::Text(text.into_inner().into_owned()),
                Event::GeneralRef(entity) => {
                    let character = entity.resolve_char_ref().map_err(|error| Malformed(error.to_string()))?;
                    let name = entity.into_inner();
                    Token::Text(match (character, name.as_ref()) {
                        (Some(character), _) => character.to_string(),
                        (None, "lt") => "<".to_owned(),
                        (None, "gt") => ">".to_owned(),
                        (None, "amp") => "&".to_owned(),
                        (None, "quot") => "\"".to_owned(),
                        (None, "apos") => "'".to_owned(),
                        (None, other) => return Err(Malformed(format!("unknown entity {other}"))),
                    })
                }
                Event::Eof => Token::End,
                Event::Decl(_) | Event::Comment(_) | Event::PI(_) | Event::DocType(_) => continue,
            });
        }
    }

    /// The next token that is not white space between elements.
    fn next_element(&mut self) -> Result<Token, Malformed> {
        loop {
            match self.next()? {
                Token::Text(text) if text.trim().is_empty() => {}
                token => return Ok(token),
            }
        }
    }

    fn open(&mut self, wanted: &str) -> Result<(), Malformed> {
        match self.next_element()? {
            Token::Open(name) if name == wanted => Ok(()),
            _ => Err(Malformed(format!("<{wanted}> expected"))),
        }
    }

    fn close(&mut self, wanted: &str) -> Result<(), Malformed> {
        match self.next_element()? {
            Token::Close(name) if name == wanted => Ok(()),
            _ => Err(Malformed(format!("</{wanted}> expected"))),
        }
    }

    /// True when `child` opens, false when `parent` closes.
    fn opens(&mut self, child: &str, parent: &str) -> Result<bool, Malformed> {
        match self.next_element()? {
            Token::Open(name) if name == child => Ok(true),
            Token::Close(name) if name == parent => Ok(false),
            _ => Err(Malformed(format!("<{child}> or </{parent}> expected"))),
        }
    }

    fn text_until_close(&mut self) -> Result<String, Malformed> {
        let mut text = String::new();
        loop {
            match self.next()? {
                Token::Text(more) => text.push_str(&more),
                Token::Close(_) => return Ok(text),
                Token::Open(name) => return Err(Malformed(format!("<{name}> inside a scalar"))),
                Token::End => return Err(Malformed("the document ends inside a value".into())),
            }
        }
    }

    /// After `<value>` up to and with `</value>`.
    fn value(&mut self, depth: usize) -> Result<Value, Malformed> {
        if depth > MAX_DEPTH {
            return Err(Malformed("values are nested too deeply".into()));
        }
        let mut text = String::new();
        loop {
            match self.next()? {
                Token::Text(more) => text.push_str(&more),
                Token::Close(_) => return Ok(Value::String(text)),
                Token::Open(tag) => {
                    let value = self.typed(&tag, depth)?;
                    self.close("value")?;
                    return Ok(value);
                }
                Token::End => return Err(Malformed("the document ends inside a value".into())),
            }
        }
    }

    fn typed(&mut self, tag: &str, depth: usize) -> Result<Value, Malformed> {
        match tag {
            "array" => {
                self.open("data")?;
                let mut items = Vec::new();
                while self.opens("value", "data")? {
                    items.push(self.value(depth + 1)?);
                }
                self.close("array")?;
                Ok(Value::Array(items))
            }
            "struct" => {
                let mut members = BTreeMap::new();
                while self.opens("member", "struct")? {
                    self.open("name")?;
                    let name = self.text_until_close()?;
                    self.open("value")?;
                    members.insert(name, self.value(depth + 1)?);
                    self.close("member")?;
                }
                Ok(Value::Struct(members))
            }
            scalar => {
                let text = self.text_until_close()?;
                let number = || Malformed(format!("<{scalar}> holds {text:?}"));
                match scalar {
                    "string" => Ok(Value::String(text)),
                    "i4" | "int" | "i8" => Ok(Value::Int(text.trim().parse().map_err(|_| number())?)),
                    "double" => Ok(Value::Float(text.trim().parse().map_err(|_| number())?)),
                    // Anything but 1 reads as false.
                    "boolean" => Ok(Value::Bool(text.trim() == "1")),
                    "dateTime.iso8601" => Ok(Value::DateTime(text)),
                    "nil" => Ok(Value::Nil),
                    other => Err(Malformed(format!("<{other}> is no type"))),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_leave_as_untagged_text_and_control_characters_vanish() {
        let value = Value::map([("n", Value::Int(5)), ("s", Value::from("a<\u{1}&\"\n"))]);
        assert_eq!(
            value_text(&value),
            "<value><struct><member><name>n</name><value>5</value></member>\
             <member><name>s</name><value>a&lt;&amp;&quot;\n</value></member></struct></value>"
        );
        assert_eq!(value_text(&Value::Int32(7)), "<value><i4>7</i4></value>");
        assert_eq!(value_text(&Value::void()), "<value></value>");
    }

    #[test]
    fn a_call_is_read_with_every_spelling_of_a_value() {
        let call = parse_call(
            b"<?xml version='1.0'?>\n<methodCall><methodName>VM.x</methodName>\n<params>\
              <param><value>a&lt;&#65;&amp;</value></param>\
              <param>\n<value> <i4>7</i4> </value></param>\
              <param><value><boolean>0</boolean></value></param>\
              <param><value/></param>\
              <param><value><nil/></value></param>\
              <param><value><array><data><value><string> x </string></value></data></array></value></param>\
              <param><value><struct><member><name>k</name><value><double>1.5</double></value></member></struct></value></param>\
              </params></methodCall>",
        )
        .unwrap();
        let expected = vec![
            Value::from("a<A&"),
            Value::Int(7),
            Value::Bool(false),
            Value::from(""),
            Value::Nil,
            Value::Array(vec![Value::from(" x ")]),
            Value::map([("k", Value::Float(1.5))]),
        ];
        assert_eq!(call, Call { method: "VM.x".into(), params: expected });
    }

    #[test]
    fn what_is_no_call_is_malformed_and_never_panics() {
        let deep =
            "<methodCall><methodName>m</methodName><params><param>".to_owned() + &"<value><array><data>".repeat(1000);
        for body in
            ["", "x", "<a/>", "<methodCall>", "<methodCall><methodName>m</methodName><params><param><value>", &deep]
        {
            assert!(parse_call(body.as_bytes()).is_err(), "{body:.40}");
        }
        assert!(parse_call(&[0xff, 0xfe]).is_err());
    }
}
