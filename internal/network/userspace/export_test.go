package userspace

// What the tests look at from outside.
var (
	RoutedLocally   = routedLocally
	HostAddrs       = hostAddrs
	ParseResolvConf = parseResolvConf
	NewFrameReader  = newFrameReader
	Admit           = admit
	RouteType       = routeType
)

// NextFrame reads one frame.
func (f *frameReader) NextFrame() ([]byte, error) { return f.next() }

// AnswerTo runs the question parser and, where it accepts, the builder.
func AnswerTo(raw []byte) (msg []byte, refused []byte, ok bool) {
	q, rcode, ok := parseQuestion(raw)
	if !ok {
		return nil, nil, false
	}
	if rcode != 0 {
		return nil, q.fail(rcode), true
	}
	msg, err := q.build(7)
	if err != nil {
		return nil, q.fail(2), true
	}
	return msg, nil, true
}

// AnsweredBy says whether a answers the question in raw as built with id 7.
func AnsweredBy(raw, a []byte) bool {
	q, _, ok := parseQuestion(raw)
	if !ok {
		return false
	}
	msg, err := q.build(7)
	return err == nil && q.answeredBy(a, msg)
}
