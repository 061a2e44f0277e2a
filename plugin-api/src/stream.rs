//! Streams of bytes, which a plugin moves from one to the other without looking at them.
//!
//! What [`Output::splice`] moves stays with the host: it costs a call, not a copy. [`Input::read`] and [`Output::write_all`] bring
//! bytes into the plugin's memory and out of it, for the few that it has to see.

use crate::Error;
use crate::bindings::http::wasi::http::types::IncomingBody;
use crate::bindings::http::wasi::io::streams::{InputStream, OutputStream, StreamError};
use crate::bindings::target::wasi::filesystem::types::filesystem_error_code;
use crate::files::Problem;

#[cfg(not(target_arch = "wasm32"))]
use std::{
    cell::RefCell,
    io::{Read, Write},
    rc::Rc,
};

/// Where bytes come from.
pub struct Input {
    source: Source,
    /// What has to live as long as its stream, and is dropped after it.
    _parent: Option<IncomingBody>,
    /// Whose bytes they are, for messages.
    name: String,
}

/// Where bytes go.
pub struct Output {
    sink: Sink,
    /// Whose bytes they become, for messages.
    name: String,
}

#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code, reason = "only a host makes its streams"))]
enum Source {
    Host(InputStream),
    #[cfg(not(target_arch = "wasm32"))]
    Double(RefCell<Box<dyn Read>>),
}

#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code, reason = "only a host makes its streams"))]
enum Sink {
    Host(OutputStream),
    #[cfg(not(target_arch = "wasm32"))]
    Double(RefCell<Box<dyn Write>>),
    #[cfg(not(target_arch = "wasm32"))]
    Collecting(Rc<RefCell<Vec<u8>>>),
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input").field("name", &self.name).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Input {
    #[cfg_attr(not(target_arch = "wasm32"), allow(dead_code, reason = "only a host makes its streams"))]
    pub(crate) fn of_host(stream: InputStream, name: impl Into<String>) -> Self {
        Self { source: Source::Host(stream), _parent: None, name: name.into() }
    }

    /// The body of an answer.
    #[cfg(target_arch = "wasm32")]
    pub(crate) fn of_answer(stream: InputStream, body: IncomingBody, name: &str) -> Self {
        Self { source: Source::Host(stream), _parent: Some(body), name: name.to_owned() }
    }

    /// A stream for a test.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn double(bytes: impl Read + 'static, name: impl Into<String>) -> Self {
        Self { source: Source::Double(RefCell::new(Box::new(bytes))), _parent: None, name: name.into() }
    }

    /// Up to `most` bytes, at least one unless it is at its end.
    pub fn read(&self, most: u64) -> Result<Vec<u8>, Error> {
        match &self.source {
            Source::Host(stream) => match stream.blocking_read(most) {
                Err(StreamError::Closed) => Ok(Vec::new()),
                read => read.map_err(|error| failed(&self.name, &error)),
            },
            #[cfg(not(target_arch = "wasm32"))]
            Source::Double(source) => read_once(source, most, &self.name),
        }
    }
}

impl Output {
    #[cfg_attr(not(target_arch = "wasm32"), allow(dead_code, reason = "only a host makes its streams"))]
    pub(crate) fn of_host(stream: OutputStream, name: impl Into<String>) -> Self {
        Self { sink: Sink::Host(stream), name: name.into() }
    }

    /// A stream for a test.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn double(sink: impl Write + 'static, name: impl Into<String>) -> Self {
        Self { sink: Sink::Double(RefCell::new(Box::new(sink))), name: name.into() }
    }

    /// A stream whose bytes a double looks at afterwards.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn collecting(into: Rc<RefCell<Vec<u8>>>, name: &str) -> Self {
        Self { sink: Sink::Collecting(into), name: name.to_owned() }
    }

    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn collected(&self) -> Option<&Rc<RefCell<Vec<u8>>>> {
        match &self.sink {
            Sink::Collecting(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The host's stream itself, for whoever has to give it back.
    pub(crate) fn into_host(self) -> Option<OutputStream> {
        match self.sink {
            Sink::Host(stream) => Some(stream),
            #[cfg(not(target_arch = "wasm32"))]
            _ => None,
        }
    }

    /// Moves up to `most` bytes from `input`, at least one unless it is at its end, and answers how many it moved.
    pub fn splice(&self, input: &Input, most: u64) -> Result<u64, Error> {
        if most == 0 {
            return Ok(0);
        }
        match (&self.sink, &input.source) {
            (Sink::Host(to), Source::Host(from)) => match to.blocking_splice(from, most) {
                // Either may have closed: the server that read a request's body, or what there was to read.
                Err(StreamError::Closed) => match to.check_write() {
                    Err(error) => Err(failed(&self.name, &error)),
                    Ok(_) => Ok(0),
                },
                moved => moved.map_err(|error| failed(&self.name, &error)),
            },
            #[cfg(not(target_arch = "wasm32"))]
            _ => {
                let bytes = input.read(most.min(PIECE))?;
                self.write_all(&bytes)?;
                Ok(bytes.len() as u64)
            }
        }
    }

    /// Moves exactly `length` bytes from `input`.
    pub fn splice_all(&self, input: &Input, length: u64) -> Result<(), Error> {
        let mut left = length;
        while left > 0 {
            match self.splice(input, left)? {
                0 => return Err(Error::damaged(format!("{} ended {left} bytes too early", input.name))),
                moved => left -= moved,
            }
        }
        Ok(())
    }

    /// Writes bytes of the plugin's own.
    pub fn write_all(&self, bytes: &[u8]) -> Result<(), Error> {
        match &self.sink {
            Sink::Host(stream) => write_all(stream, bytes).map_err(|error| failed(&self.name, &error)),
            #[cfg(not(target_arch = "wasm32"))]
            Sink::Double(sink) => {
                sink.borrow_mut().write_all(bytes).map_err(|error| Problem::from(error).into_error("write", &self.name))
            }
            #[cfg(not(target_arch = "wasm32"))]
            Sink::Collecting(all) => {
                all.borrow_mut().extend_from_slice(bytes);
                Ok(())
            }
        }
    }
}

fn write_all(stream: &OutputStream, mut bytes: &[u8]) -> Result<(), StreamError> {
    while !bytes.is_empty() {
        let room = stream.check_write()?;
        if room == 0 {
            stream.subscribe().block();
            continue;
        }
        let (piece, rest) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
        stream.write(piece)?;
        bytes = rest;
    }
    stream.blocking_flush()
}

/// What a stream's failure means. A file's has a code of the file system.
fn failed(name: &str, error: &StreamError) -> Error {
    match error {
        StreamError::Closed => Error::unavailable(format!("{name} takes no more bytes"), RETRY_AFTER_SECONDS),
        StreamError::LastOperationFailed(error) => match filesystem_error_code(error) {
            Some(code) => Problem::from(code).into_error("move bytes of", name),
            None => Error::unavailable(format!("{name}: {}", error.to_debug_string()), RETRY_AFTER_SECONDS),
        },
    }
}

/// When a host may ask again after something outside failed.
const RETRY_AFTER_SECONDS: u64 = 30;

/// How much a double moves at once.
#[cfg(not(target_arch = "wasm32"))]
const PIECE: u64 = 64 << 10;

#[cfg(not(target_arch = "wasm32"))]
fn read_once(source: &RefCell<Box<dyn Read>>, most: u64, name: &str) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; most.min(PIECE) as usize];
    let read = source.borrow_mut().read(&mut bytes).map_err(|error| Problem::from(error).into_error("read", name))?;
    bytes.truncate(read);
    Ok(bytes)
}
