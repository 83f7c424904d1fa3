package guesttest_test

import (
	"testing"

	"github.com/banger-dev/banger/internal/guest/guesttest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestUnix(t *testing.T) {
	g := guesttest.Unix(t)
	guesttest.Contract{Endpoint: g.Endpoint, Token: g.Token}.Run(t)
}

func TestSerial(t *testing.T) {
	g := guesttest.Serial(t)
	guesttest.Contract{Endpoint: g.Endpoint, Token: g.Token}.Run(t)
}
