package kafka

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
	"github.com/segmentio/kafka-go/protocol/saslauthenticate"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
	"github.com/segmentio/kafka-go/sasl"

	"github.com/sluice-dev/sluice/providers"
)

// gatekeeper is a broker until it has let in, or not, whoever connects. It says what answer makes of the client's bytes.
func gatekeeper(t *testing.T, knows string, answer func(said string) *saslauthenticate.Response) string {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = ln.Close()
		<-done
	})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		for {
			version, id, _, request, err := protocol.ReadRequest(c)
			if err != nil {
				return // the client is done
			}
			var response protocol.Message
			switch r := request.(type) {
			case *saslhandshake.Request:
				shaken := &saslhandshake.Response{Mechanisms: []string{knows}}
				if r.Mechanism != knows {
					shaken.ErrorCode = 33
				}
				response = shaken
			case *saslauthenticate.Request:
				response = answer(string(r.AuthBytes))
			default:
				versions := &apiversions.Response{}
				for _, key := range []protocol.ApiKey{protocol.SaslHandshake, protocol.SaslAuthenticate} {
					versions.ApiKeys = append(versions.ApiKeys, apiversions.ApiKeyResponse{ApiKey: int16(key), MaxVersion: key.MaxVersion()})
				}
				response = versions
			}
			if err := protocol.WriteResponse(c, version, id, response); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	return ln.Addr().String()
}

// enter connects to a gatekeeper.
func enter(t *testing.T, address string, m sasl.Mechanism) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c, err := dial(ctx, address, security{sasl: m, allow: allowing(t, "127.0.0.1")}, func(protocol.ApiKey) {})
	if err == nil {
		c.close()
	}
	return err
}

// What a broker is told, and what becomes of what it says.
func TestAuthenticate(t *testing.T) {
	srv := endpoint(t, func(w http.ResponseWriter, _ *http.Request) { grants(w, token) })
	plain := func(t *testing.T) sasl.Mechanism {
		t.Helper()
		s, err := parseCredentials(bytesOf(map[string]string{"sasl": "plaintext", "username": "alice", "password": canary}), providers.AllowList{})
		if err != nil {
			t.Fatal(err)
		}
		return s.sasl
	}
	oauth := func(t *testing.T) sasl.Mechanism { t.Helper(); return bearer(t, srv.URL, nil, "127.0.0.1") }
	repeats := func(said string) *saslauthenticate.Response {
		return &saslauthenticate.Response{ErrorCode: 58, ErrorMessage: "not you: " + said}
	}
	tests := []struct {
		name, knows string
		mechanism   func(t *testing.T) sasl.Mechanism
		answer      func(said string) *saslauthenticate.Response
		wantSaid    string
		wantErr     string
	}{
		{
			name: "PLAIN", knows: "PLAIN", mechanism: plain, wantSaid: "\x00alice\x00" + canary,
			answer: func(string) *saslauthenticate.Response { return &saslauthenticate.Response{} },
		},
		{
			name: "PLAIN refused", knows: "PLAIN", mechanism: plain, answer: repeats, wantSaid: "\x00alice\x00" + canary,
			wantErr: `not you: \x00[hidden]\x00[hidden]"`,
		},
		{
			name: "another mechanism", knows: "GSSAPI", mechanism: plain,
			wantErr: `the broker knows ["GSSAPI"]`,
		},
		{
			name: "mechanisms without end", knows: strings.Repeat("G", 20_000), mechanism: plain,
			wantErr: `the broker knows ["` + strings.Repeat("G", 40) + `"]`,
		},
		{
			name: "OAUTHBEARER", knows: "OAUTHBEARER", mechanism: oauth, wantSaid: "n,,\x01auth=Bearer " + token + "\x01\x01",
			answer: func(string) *saslauthenticate.Response { return &saslauthenticate.Response{} },
		},
		{
			name: "OAUTHBEARER refused", knows: "OAUTHBEARER", mechanism: oauth, answer: repeats, wantSaid: "n,,\x01auth=Bearer " + token + "\x01\x01",
			wantErr: `not you: n,,\x01[hidden]\x01\x01"`,
		},
		{
			name: "OAUTHBEARER challenged", knows: "OAUTHBEARER", mechanism: oauth, wantSaid: "n,,\x01auth=Bearer " + token + "\x01\x01",
			answer: func(string) *saslauthenticate.Response {
				return &saslauthenticate.Response{AuthBytes: []byte(`{"status":"invalid_token: ` + token + `"}`)}
			},
			wantErr: `the broker refuses the token: "{\"status\":\"invalid_token: [hidden]\"}"`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			heard := make(chan string, 1)
			address := gatekeeper(t, tt.knows, func(s string) *saslauthenticate.Response {
				heard <- s
				return tt.answer(s)
			})
			err := enter(t, address, tt.mechanism(t))
			if tt.wantErr == "" && err != nil || tt.wantErr != "" && (err == nil || !strings.HasSuffix(err.Error(), tt.wantErr)) {
				t.Errorf("got  %v\nwant ... %s", err, tt.wantErr)
			}
			close(heard)
			if said := <-heard; said != tt.wantSaid {
				t.Errorf("said %q, want %q", said, tt.wantSaid)
			}
		})
	}
}

// The signature is for the broker at the other end of the connection, whoever else is in the cluster.
func TestMSKSignsForTheBroker(t *testing.T) {
	s, err := parseCredentials(bytesOf(map[string]string{"sasl": "aws_msk_iam", "awsRegion": "r", "awsAccessKeyID": "i", "awsSecretAccessKey": canary}), providers.AllowList{})
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan string, 1)
	address := gatekeeper(t, "AWS_MSK_IAM", func(s string) *saslauthenticate.Response {
		heard <- s
		return &saslauthenticate.Response{}
	})
	if err := enter(t, address, s.sasl); err != nil {
		t.Fatal(err)
	}
	var said struct{ Host string }
	if err := json.Unmarshal([]byte(<-heard), &said); err != nil || said.Host != "127.0.0.1" {
		t.Errorf("signed for %q, %v", said.Host, err)
	}
}
