package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Kind is what a message on a stream is.
type Kind uint8

// The kinds. A stream's first message is a KindRequest from the host.
const (
	KindRequest Kind = 1 // Request
	KindReply   Kind = 2 // the method's reply; the last message of its stream but for "dial"
	KindError   Kind = 3 // Error; the last message of its stream
	KindItem    Kind = 4 // ExecInput, ExecOutput, or raw bytes of a tar stream
)

// headSize is the bytes before a message: its kind and its length.
const headSize = 5

// ErrTooLarge says that a message is longer than MaxMessage.
var ErrTooLarge = errors.New("message too large")

// Request names a method. Message is set by who sends, Body by Decode.
type Request struct {
	Method  Method
	Message Message
	Body    []byte
}

// AppendMessage adds a whole message, head included, to b.
func AppendMessage(b []byte, kind Kind, m Message) ([]byte, error) {
	at := len(b)
	b = append(b, byte(kind), 0, 0, 0, 0)
	b = Append(b, m)
	return b, closeHead(b, at)
}

// AppendRaw adds a message of raw bytes to b.
func AppendRaw(b []byte, kind Kind, body []byte) ([]byte, error) {
	at := len(b)
	b = append(b, byte(kind), 0, 0, 0, 0)
	b = append(b, body...)
	return b, closeHead(b, at)
}

func closeHead(b []byte, at int) error {
	n := len(b) - at - headSize
	if n > MaxMessage {
		return fmt.Errorf("%w: %d bytes", ErrTooLarge, n)
	}
	binary.BigEndian.PutUint32(b[at+1:], uint32(n))
	return nil
}

// ReadMessage reads one message; what follows it is left unread. The bytes are
// the caller's. io.EOF only where no message has begun.
func ReadMessage(r io.Reader) (Kind, []byte, error) {
	var head [headSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := int(binary.BigEndian.Uint32(head[1:]))
	kind := Kind(head[0])
	if kind < KindRequest || kind > KindItem {
		return 0, nil, fmt.Errorf("%w: kind %d", ErrMalformed, kind)
	}
	if n > MaxMessage {
		return 0, nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, n)
	}
	body, err := readBody(r, n)
	return kind, body, err
}

// readBody believes a length only as far as bytes have come.
func readBody(r io.Reader, n int) ([]byte, error) {
	const step = 128 << 10
	body := make([]byte, min(n, step))
	for got := 0; ; {
		k, err := io.ReadFull(r, body[got:])
		got += k
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if got == n {
			return body, nil
		}
		body = slices.Grow(body, min(n-got, got))[:got+min(n-got, got)]
	}
}

// Proof is what a guest that knows the token answers to a nonce.
func Proof(token, nonce []byte) []byte {
	h := hmac.New(sha256.New, token)
	h.Write([]byte("guest"))
	h.Write(nonce)
	return h.Sum(nil)
}
