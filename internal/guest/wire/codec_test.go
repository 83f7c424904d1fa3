package wire

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

// every is one of each message, for tests that walk them all.
func every() []Message {
	return []Message{
		&Request{}, &HelloRequest{}, &HelloReply{}, &Identity{}, &Net{}, &KV{},
		&IdentityReply{}, &Step{}, &HandoverRequest{}, &Empty{}, &PrepareRequest{},
		&PrepareReply{}, &Stats{}, &ClockRequest{}, &GrowRequest{}, &WaitRequest{},
		&WaitReply{}, &ShutdownRequest{}, &ExecRequest{}, &AttachRequest{},
		&ExecInput{}, &ExecOutput{}, &Started{}, &Chunk{}, &Size{}, &Exit{},
		&TarInRequest{}, &TarOutRequest{}, &TarReply{}, &DialRequest{}, &Error{},
	}
}

// fill sets every field of a message to a random value that is not zero.
func fill(v reflect.Value, r *rand.Rand) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), r)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), r)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1+r.IntN(3), 3))
		for i := range v.Len() {
			fill(v.Index(i), r)
		}
	case reflect.String:
		v.SetString(strings.Repeat("é", 1+r.IntN(40)))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(1 + r.Uint64()>>(65-v.Type().Bits())%200)
	case reflect.Int64:
		v.SetInt(-1 - r.Int64N(1<<40))
	case reflect.Float64:
		v.SetFloat(1 + r.Float64())
	}
}

func TestEveryFieldOfEveryMessageComesBack(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, m := range every() {
		if _, ok := m.(*Request); ok {
			continue
		}
		for range 20 {
			v := reflect.ValueOf(m).Elem()
			fill(v, r)
			back := reflect.New(v.Type())
			if err := Decode(Append(nil, m), back.Interface().(Message)); err != nil {
				t.Fatalf("%T: %v", m, err)
			}
			if !reflect.DeepEqual(m, back.Interface()) {
				t.Errorf("%T: sent %+v, got %+v", m, m, back.Interface())
			}
		}
	}
}

// The bytes are protobuf's: these are what its own tools give.
func TestTheBytesAreProtobufs(t *testing.T) {
	for want, m := range map[string]Message{
		"\x08\x96\x01\x12\x07testing":                  &Chunk{Off: 150, Data: []byte("testing")},
		"9\x00\x00\x00\x00\x00\x00\xf8\x3f":            &Stats{Load1: 1.5},
		"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01": &ClockRequest{UnixNS: -1},
		"\x12\x01a\x12\x00":                            &ExecRequest{Argv: []string{"a", ""}},
	} {
		if got := string(Append(nil, m)); got != want {
			t.Errorf("%T: %q, not %q", m, got, want)
		}
	}
	// A nested message's length may be written longer than it needs.
	var in ExecInput
	if err := Decode([]byte("\x1a\x02\x08\x18"), &in); err != nil || in.Resize == nil || in.Resize.Rows != 24 {
		t.Errorf("%+v %v", in.Resize, err)
	}
}

func TestARequestCarriesItsBody(t *testing.T) {
	b, err := AppendMessage(nil, KindRequest, &Request{Method: MethodExec, Message: &ExecRequest{Argv: []string{"", "a b", `"`, "\xff"}}})
	if err != nil {
		t.Fatal(err)
	}
	r := bytes.NewReader(append(b, "rest"...))
	kind, body, err := ReadMessage(r)
	if err != nil || kind != KindRequest {
		t.Fatal(kind, err)
	}
	var req Request
	var ex ExecRequest
	if err := Decode(body, &req); err != nil {
		t.Fatal(err)
	}
	if err := Decode(req.Body, &ex); err != nil {
		t.Fatal(err)
	}
	if req.Method != MethodExec || !reflect.DeepEqual(ex.Argv, []string{"", "a b", `"`, "\xff"}) {
		t.Errorf("%q %q", req.Method, ex.Argv)
	}
	if r.Len() != len("rest") {
		t.Errorf("%d bytes left", r.Len())
	}
}

func TestZerosThatMeanSomethingAreKept(t *testing.T) {
	zero := uint64(0)
	in := ExecInput{CloseAt: &zero, AckStdout: &zero, Stdin: &Chunk{}}
	var out ExecInput
	if err := Decode(Append(nil, &in), &out); err != nil {
		t.Fatal(err)
	}
	if out.CloseAt == nil || out.AckStdout == nil || out.AckStderr != nil || out.Stdin == nil || out.Resize != nil {
		t.Errorf("%+v", out)
	}
}

func TestUnknownFieldsAreSkipped(t *testing.T) {
	b := Append(nil, &Stats{MemTotal: 7})
	b = append(b, 0xfa, 0x3f, 0x03, 'a', 'b', 'c') // field 1023, three bytes
	b = append(b, 0xf5, 0x3f, 1, 2, 3, 4)          // field 1022, fixed32
	var s Stats
	if err := Decode(b, &s); err != nil || s.MemTotal != 7 {
		t.Error(err, s)
	}
}

func TestMalformedMessagesAreRefused(t *testing.T) {
	many := bytes.Repeat([]byte{0x52, 0x01, 'x'}, MaxRepeated+1)
	for name, c := range map[string]struct {
		b []byte
		m Message
	}{
		"cut tag":       {[]byte{0x80}, &Stats{}},
		"cut varint":    {[]byte{0x08, 0xff}, &Stats{}},
		"cut bytes":     {[]byte{0x0a, 0x05, 'a'}, &Error{}},
		"huge bytes":    {[]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, &Error{}},
		"wrong type":    {[]byte{0x08, 0x01}, &Error{}},
		"no UTF-8":      {[]byte{0x0a, 0x01, 0xff}, &Error{}},
		"uint32 beyond": {[]byte{0x08, 0xff, 0xff, 0xff, 0xff, 0x7f}, &Size{}},
		"too many":      {many, &Identity{}},
		"nested":        {[]byte{0x0a, 0x02, 0x12, 0x7f}, &ExecInput{}},
	} {
		if err := Decode(c.b, c.m); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadMessageIsBounded(t *testing.T) {
	if _, _, err := ReadMessage(bytes.NewReader([]byte{2, 0xff, 0xff, 0xff, 0xff})); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
	if _, _, err := ReadMessage(bytes.NewReader([]byte{9, 0, 0, 0, 0})); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
	if _, _, err := ReadMessage(bytes.NewReader([]byte{2, 0, 0, 0, 9, 1})); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if _, _, err := ReadMessage(bytes.NewReader(nil)); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	// A length is believed only as far as bytes come.
	allocated := testing.AllocsPerRun(1, func() {
		ReadMessage(io.MultiReader(bytes.NewReader([]byte{2, 0, 0x3f, 0xff, 0xff}), bytes.NewReader(make([]byte, 10))))
	})
	if allocated > 20 {
		t.Errorf("%v allocations for a message that never came", allocated)
	}
	if _, err := AppendRaw(nil, KindItem, make([]byte, MaxMessage+1)); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 4))
	for i, m := range every() {
		if _, ok := m.(*Request); !ok {
			fill(reflect.ValueOf(m).Elem(), r)
		}
		f.Add(uint8(i), Append(nil, m))
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		all := every()
		m := all[int(which)%len(all)]
		if err := Decode(b, m); err != nil {
			return
		}
		if q, ok := m.(*Request); ok {
			q.Message = &Empty{}
		}
		again := reflect.New(reflect.TypeOf(m).Elem()).Interface().(Message)
		if err := Decode(Append(nil, m), again); err != nil {
			t.Fatalf("what was decoded does not encode: %v", err)
		}
	})
}

func FuzzReadMessage(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 3, 'a', 'b', 'c'})
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		kind, body, err := ReadMessage(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := AppendRaw(nil, kind, body)
		if err != nil || !bytes.HasPrefix(b, again) {
			t.Fatal("a message came back differently", err)
		}
	})
}
