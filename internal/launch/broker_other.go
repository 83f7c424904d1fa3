//go:build !amd64

package launch

import (
	"context"
	"errors"
)

// BrokerUsable is false where there is no filter for the machine.
func BrokerUsable() bool { return false }

func installBroker(int) error { return errors.New("there is a broker for x86_64 only") }

func (b *Broker) serve(context.Context) error {
	return errors.New("there is a broker for x86_64 only")
}
