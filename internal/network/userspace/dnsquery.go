package userspace

import (
	"encoding/binary"
	"errors"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// query is a guest's question, taken apart. What goes to the host's resolver
// is built anew from it, so that no byte of the guest's making but the name
// reaches a parser of the host's.
type query struct {
	id       uint16
	question dnsmessage.Question
	header   dnsmessage.Header
	edns     bool
	size     uint16 // largest datagram the guest takes
	dnssec   bool
}

// Question types that are no look-up.
const (
	typeIXFR = dnsmessage.Type(251)
	typeANY  = dnsmessage.Type(255)
)

// parseQuestion reads a guest's message. ok is false for what deserves no
// answer (not a question at all); rcode says how else to refuse.
func parseQuestion(raw []byte) (q query, rcode dnsmessage.RCode, ok bool) {
	var p dnsmessage.Parser
	h, err := p.Start(raw)
	if err != nil || h.Response {
		return query{}, 0, false
	}
	q.id, q.header = h.ID, h
	if h.OpCode != 0 {
		return q, dnsmessage.RCodeNotImplemented, true
	}
	questions := binary.BigEndian.Uint16(raw[4:])
	if questions != 1 {
		return q, dnsmessage.RCodeFormatError, true
	}
	if q.question, err = p.Question(); err != nil {
		return q, dnsmessage.RCodeFormatError, true
	}
	if t := q.question.Type; q.question.Class != dnsmessage.ClassINET || t >= typeIXFR && t <= typeANY {
		return q, dnsmessage.RCodeRefused, true
	}
	if p.SkipAllQuestions() != nil || p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return q, dnsmessage.RCodeFormatError, true
	}
	for {
		rh, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return q, dnsmessage.RCodeSuccess, true
		}
		if err != nil {
			return q, dnsmessage.RCodeFormatError, true
		}
		if rh.Type == dnsmessage.TypeOPT {
			q.edns, q.size, q.dnssec = true, max(uint16(rh.Class), 512), rh.DNSSECAllowed()
		}
		if p.SkipAdditional() != nil {
			return q, dnsmessage.RCodeFormatError, true
		}
	}
}

// build makes the message for the host's resolver.
func (q query) build(id uint16) ([]byte, error) {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{
		ID: id, RecursionDesired: q.header.RecursionDesired,
		AuthenticData: q.header.AuthenticData, CheckingDisabled: q.header.CheckingDisabled,
	})
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	if err := b.Question(q.question); err != nil {
		return nil, err
	}
	if q.edns {
		var rh dnsmessage.ResourceHeader
		if err := rh.SetEDNS0(int(q.size), dnsmessage.RCodeSuccess, q.dnssec); err != nil {
			return nil, err
		}
		if err := b.StartAdditionals(); err != nil {
			return nil, err
		}
		if err := b.OPTResource(rh, dnsmessage.OPTResource{}); err != nil {
			return nil, err
		}
	}
	return b.Finish()
}

// answeredBy says whether a is an answer to msg, which build made.
func (q query) answeredBy(a, msg []byte) bool {
	if len(a) < 12 || a[0] != msg[0] || a[1] != msg[1] {
		return false
	}
	var p dnsmessage.Parser
	h, err := p.Start(a)
	if err != nil || !h.Response {
		return false
	}
	got, err := p.Question()
	if errors.Is(err, dnsmessage.ErrSectionDone) {
		return h.RCode != dnsmessage.RCodeSuccess // some refuse without repeating it
	}
	return err == nil && got.Type == q.question.Type && got.Class == q.question.Class &&
		strings.EqualFold(got.Name.String(), q.question.Name.String())
}

// restore puts the guest's id on an answer.
func (q query) restore(a []byte) []byte {
	binary.BigEndian.PutUint16(a, q.id)
	return a
}

// fail is an answer without one.
func (q query) fail(rcode dnsmessage.RCode) []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{
		ID: q.id, Response: true, OpCode: q.header.OpCode, RCode: rcode,
		RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true,
	})
	if q.question.Name.Length > 0 {
		if b.StartQuestions() != nil || b.Question(q.question) != nil {
			return nil
		}
	}
	msg, err := b.Finish()
	if err != nil {
		return nil
	}
	return msg
}
