package wire

import (
	"errors"
	"fmt"
	"math"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// MaxRepeated bounds every repeated field.
const MaxRepeated = 4096

// ErrMalformed says that bytes are not a message.
var ErrMalformed = errors.New("malformed message")

// Message is one of this package's structs. Each lists its fields once, for
// both directions; numbers never change their meaning.
type Message interface{ fields(*coder) }

// Append adds the encoding of m, in protobuf's wire format, to b.
func Append(b []byte, m Message) []byte {
	c := coder{out: b}
	m.fields(&c)
	return c.out
}

// Decode fills m from b. Unknown fields are skipped; strings must be UTF-8.
// Byte fields of m alias b.
func Decode(b []byte, m Message) error {
	c := coder{decode: true}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: %w", ErrMalformed, protowire.ParseError(n))
		}
		b = b[n:]
		c.num, c.typ, c.data = num, typ, nil
		switch typ {
		case protowire.VarintType:
			c.val, n = protowire.ConsumeVarint(b)
		case protowire.Fixed64Type:
			c.val, n = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			c.data, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return fmt.Errorf("%w: %w", ErrMalformed, protowire.ParseError(n))
		}
		b = b[n:]
		m.fields(&c)
		if c.err != nil {
			return c.err
		}
	}
	return nil
}

// coder encodes all fields, or decodes the one field it holds.
type coder struct {
	out []byte

	decode bool
	num    protowire.Number
	typ    protowire.Type
	val    uint64
	data   []byte
	err    error
}

// holds says whether the field to decode is this one.
func (c *coder) holds(num protowire.Number, typ protowire.Type) bool {
	if c.num != num || c.err != nil {
		return false
	}
	if c.typ != typ {
		c.fail("field %d has type %d", num, c.typ)
		return false
	}
	return true
}

func (c *coder) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
	}
}

func (c *coder) varint(num protowire.Number, v uint64) {
	c.out = protowire.AppendTag(c.out, num, protowire.VarintType)
	c.out = protowire.AppendVarint(c.out, v)
}

func (c *coder) uint64(num protowire.Number, v *uint64) {
	if !c.decode {
		if *v != 0 {
			c.varint(num, *v)
		}
	} else if c.holds(num, protowire.VarintType) {
		*v = c.val
	}
}

func (c *coder) uint32(num protowire.Number, v *uint32) {
	if !c.decode {
		if *v != 0 {
			c.varint(num, uint64(*v))
		}
	} else if c.holds(num, protowire.VarintType) {
		if c.val > math.MaxUint32 {
			c.fail("field %d is too large", num)
			return
		}
		*v = uint32(c.val)
	}
}

func (c *coder) int64(num protowire.Number, v *int64) {
	u := uint64(*v)
	c.uint64(num, &u)
	*v = int64(u)
}

func (c *coder) bool(num protowire.Number, v *bool) {
	if !c.decode {
		if *v {
			c.varint(num, 1)
		}
	} else if c.holds(num, protowire.VarintType) {
		*v = c.val != 0
	}
}

func (c *coder) float64(num protowire.Number, v *float64) {
	if !c.decode {
		if *v != 0 {
			c.out = protowire.AppendTag(c.out, num, protowire.Fixed64Type)
			c.out = protowire.AppendFixed64(c.out, math.Float64bits(*v))
		}
	} else if c.holds(num, protowire.Fixed64Type) {
		*v = math.Float64frombits(c.val)
	}
}

// optional is a number that may be absent.
func (c *coder) optional(num protowire.Number, v **uint64) {
	if !c.decode {
		if *v != nil {
			c.varint(num, **v)
		}
	} else if c.holds(num, protowire.VarintType) {
		n := c.val
		*v = &n
	}
}

func (c *coder) string(num protowire.Number, v *string) {
	if !c.decode {
		if *v != "" {
			c.appendString(num, *v)
		}
	} else if c.holds(num, protowire.BytesType) {
		*v = c.text()
	}
}

func (c *coder) appendString(num protowire.Number, v string) {
	c.out = protowire.AppendTag(c.out, num, protowire.BytesType)
	c.out = protowire.AppendString(c.out, v)
}

func (c *coder) text() string {
	if !utf8.Valid(c.data) {
		c.fail("field %d is not UTF-8", c.num)
		return ""
	}
	return string(c.data)
}

// raw is a string of arbitrary bytes: arguments, environment, paths.
func (c *coder) raw(num protowire.Number, v *string) {
	if !c.decode {
		if *v != "" {
			c.appendString(num, *v)
		}
	} else if c.holds(num, protowire.BytesType) {
		*v = string(c.data)
	}
}

func (c *coder) bytes(num protowire.Number, v *[]byte) {
	if !c.decode {
		if len(*v) > 0 {
			c.out = protowire.AppendTag(c.out, num, protowire.BytesType)
			c.out = protowire.AppendBytes(c.out, *v)
		}
	} else if c.holds(num, protowire.BytesType) {
		*v = c.data
	}
}

// raws is a list of strings of arbitrary bytes; empty ones count.
func (c *coder) raws(num protowire.Number, v *[]string) {
	if !c.decode {
		for _, s := range *v {
			c.appendString(num, s)
		}
	} else if c.holds(num, protowire.BytesType) && c.room(num, len(*v)) {
		*v = append(*v, string(c.data))
	}
}

func (c *coder) strings(num protowire.Number, v *[]string) {
	if !c.decode {
		c.raws(num, v)
	} else if c.holds(num, protowire.BytesType) && c.room(num, len(*v)) {
		*v = append(*v, c.text())
	}
}

func (c *coder) room(num protowire.Number, have int) bool {
	if have >= MaxRepeated {
		c.fail("field %d has more than %d elements", num, MaxRepeated)
		return false
	}
	return true
}

// message encodes a nested message; its length is a varint of fixed width, so
// that nothing is encoded twice or moved.
func (c *coder) message(num protowire.Number, m Message) {
	c.out = protowire.AppendTag(c.out, num, protowire.BytesType)
	at := len(c.out)
	c.out = append(c.out, 0, 0, 0, 0)
	m.fields(c)
	n := len(c.out) - at - 4
	c.out[at] = byte(n) | 0x80
	c.out[at+1] = byte(n>>7) | 0x80
	c.out[at+2] = byte(n>>14) | 0x80
	c.out[at+3] = byte(n>>21) & 0x7f
}

func (c *coder) nested(m Message) {
	if err := Decode(c.data, m); err != nil {
		c.err = err
	}
}

// embedded is a nested message that is always there.
func (c *coder) embedded(num protowire.Number, m Message) {
	if !c.decode {
		c.message(num, m)
	} else if c.holds(num, protowire.BytesType) {
		c.nested(m)
	}
}

// pointer is a nested message that may be absent.
func pointer[T any, M interface {
	*T
	Message
}](c *coder, num protowire.Number, v *M) {
	if !c.decode {
		if *v != nil {
			c.message(num, *v)
		}
	} else if c.holds(num, protowire.BytesType) {
		*v = new(T)
		c.nested(*v)
	}
}

// list is a repeated nested message.
func list[T any, M interface {
	*T
	Message
}](c *coder, num protowire.Number, v *[]T) {
	if !c.decode {
		for i := range *v {
			c.message(num, M(&(*v)[i]))
		}
	} else if c.holds(num, protowire.BytesType) && c.room(num, len(*v)) {
		*v = append(*v, *new(T))
		c.nested(M(&(*v)[len(*v)-1]))
	}
}
