package adapter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	apiregistrationclient "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset/typed/apiregistration/v1"
)

// apiServices are those that lead to the adapter, if they are ours.
var apiServices = []string{"v1beta1.custom.metrics.k8s.io", "v1beta2.custom.metrics.k8s.io"}

// publisher keeps the CA bundle of our APIServices. One that names another Service belongs to somebody else and is
// never touched.
type publisher struct {
	client  apiregistrationclient.APIServiceInterface
	service types.NamespacedName
	metrics *adapterMetrics
	// was is what each APIService last was found to be, so that a change is logged and not every look.
	was map[string]ownership
}

// ownership is whose an APIService is.
type ownership string

const (
	ours    ownership = "ours"
	foreign ownership = "foreign"
	missing ownership = "missing"
)

// publish makes bundle that of our APIServices.
func (p *publisher) publish(ctx context.Context, bundle []byte) error {
	var errs []error
	for _, name := range apiServices {
		if err := p.publishTo(ctx, name, bundle); err != nil {
			errs = append(errs, fmt.Errorf("CA bundle of APIService %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func (p *publisher) publishTo(ctx context.Context, name string, bundle []byte) error {
	apiService, err := p.client.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		p.found(ctx, name, missing)
		return nil
	}
	if err != nil {
		return err
	}
	if s := apiService.Spec.Service; s == nil || s.Namespace != p.service.Namespace || s.Name != p.service.Name {
		p.found(ctx, name, foreign)
		return nil
	}
	p.found(ctx, name, ours)
	if bytes.Equal(apiService.Spec.CABundle, bundle) && !apiService.Spec.InsecureSkipTLSVerify {
		return nil
	}
	patch, err := p.patch(apiService, bundle)
	if err != nil {
		return err
	}
	if _, err = p.client.Patch(ctx, name, types.JSONPatchType, patch, metav1.PatchOptions{}); err != nil {
		return err
	}
	logr.FromContextOrDiscard(ctx).Info("CA bundle published", "apiService", name)
	return nil
}

// patch sets the bundle, and nothing if the APIService has become somebody else's since it was read: the tests make
// the API server refuse it then.
func (p *publisher) patch(apiService *apiregistrationv1.APIService, bundle []byte) ([]byte, error) {
	type operation struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value,omitempty"`
	}
	operations := []operation{
		{"test", "/spec/service/namespace", p.service.Namespace},
		{"test", "/spec/service/name", p.service.Name},
		{"add", "/spec/caBundle", bundle},
	}
	if apiService.Spec.InsecureSkipTLSVerify { // a bundle beside it is refused
		operations = append(operations, operation{Op: "remove", Path: "/spec/insecureSkipTLSVerify"})
	}
	return json.Marshal(operations)
}

// found notes whose the APIService is.
func (p *publisher) found(ctx context.Context, name string, now ownership) {
	if p.was[name] == now {
		return
	}
	p.was[name] = now
	for _, o := range []ownership{ours, foreign, missing} {
		value := 0.0
		if o == now {
			value = 1
		}
		p.metrics.apiService.WithLabelValues(name, string(o)).Set(value)
	}
	log := logr.FromContextOrDiscard(ctx).WithValues("apiService", name)
	switch now {
	case foreign:
		log.Info("APIService leads to another service and is left alone; metrics are not served through it")
	case missing:
		log.Info("APIService does not exist; metrics are not served through it")
	case ours:
		log.Info("APIService leads to this service")
	}
}
