"""Words of anatomy by region of the body, written by hand from anatomy and the training captions.

535 training cases name a small part of the body's parts. The lexicon tells a caption model that
"talus" and "navicular" belong together although it saw only one of them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

# A stem matches at the start of a word; a final "$" asks for the whole word.
LEXICON: Final[Mapping[str, str]] = {
    "cerebrum": """
        brain cerebr cerebri telencephal hemispher intracrani intraaxial intra-axial extraaxial
        extra-axial gyrus gyri$ gyral sulcus sulci$ sulcal cortical$ subcortical frontotempor
        frontopariet parietooccip parieto-occip temporopariet parietal occipital$ insula sylvian
        operculum hippocamp amygdal uncus$ uncal cingulate grey$ gray$ white$ matter leukodystroph
        leukomalac encephal gliosis glial vertex convexity craniotom midline schizenceph lissenceph
        polymicrogyr heterotop tubers$
    """,
    "deep_brain": """
        basal ganglia thalam putamen caudate pallid lenticular lentiform striat capsule callos
        hypothalam mamillar mammillar fornix septum$ pellucid forceps centrum semiovale corona
        radiat periventricular pineal corpus subinsular lacunar
    """,
    "hindbrain": """
        cerebell vermis tonsil pons$ pontine medulla medullary$ brainstem midbrain tectal tectum
        tegment peduncl infratentor posterior-fossa olive$ olivary dandy chiari cerebellopont cpa$
    """,
    "ventricles": """
        ventricl$ ventricle$ ventricles ventricular ventriculomeg hydroceph aqueduct
        foramen-of-monro monro choroid plexus$ cistern ependym subependym colloid csf$ cerebrospinal
        shunt arachnoid subarachnoid magendie luschka
    """,
    "meninges": """
        mening dura$ dural subdural epidural extradural falx falcine tentor leptomening pachymening
        subfalcine dural-tail parafalcine parasagittal sah$ sdh$ hygroma
    """,
    "brain_vessels": """
        mca$ aca$ pca$ ica$ pica$ aica$ sca$ acom$ acomm pcom$ pcomm supraclinoid cavernous willis
        circle basilar vertebrobasil galen sagittal-sinus transverse-sinus sigmoid-sinus
        straight-sinus mrv$ moyamoya berry infarct stroke ischem territory penumbra a1$ a2$ m1$ m2$
        p1$ watershed
    """,
    "pituitary": """
        pituitar sella sellar suprasell parasell infundibul hypophys chiasm craniopharyng rathke
        adenohypo neurohypo macroadenoma microadenoma prolactin clivus clival
    """,
    "brain_signs": """
        flair$ dwi$ adc$ diffusion restricted blooming hemosiderin vasogenic tumefactive demyelin
        plaques dawson mrs$ spectroscop choline naa$ perfusion diffusivity t2shine herniation
        butterfly seizure gyriform
    """,
    "brain_disease": """
        gliom glioblast gbm$ astrocytom oligodendro ependymom medulloblast meningiom schwannom
        neuroma craniopharyngiom dnet$ gangliogliom hemangioblast germinom pnet$ lymphoma$ toxoplasm
        neurocyst encephalit meningit hsv$ herpes sclerosis adem$ alzheimer huntington creutzfeldt
        tuberous sturge neurofibromat lipoma$ cavernom cavernous-mal avm$ dva$ hemorrhag
        intraparenchym contusion axonal
    """,
    "skull": """
        skull calvari crani$ cranial diploic diploe parietal-bone occipital-bone occipital-condyl
        sphenoid temporal-bone inner-table outer-table sutur fontanel craniosynost basilar-skull
        foramen-magnum magnum$ petrous scalp frontal-bone
    """,
    "cranial_nerve": """
        trigemin facial-nerve vestibul acoustic cochlear$ abducens oculomotor trochlear hypoglossal
        glossophar vagus$ cranial-nerve meckel cisternal cn$ vii$ viii$
    """,
    "orbit": """
        orbit eye$ eyes$ eyeball globe$ globes$ optic$ intracon extracon retrobulb retro-orb presept
        postsept lacrim proptos exophthalm rectus-musc lateral-rectus medial-rectus superior-rectus
        inferior-rectus lens$ vitre retina retino sclera scleral uvea choroidal canth eyelid palpebr
        phthisis coloboma dacryo ocular graves ophthalm superior-ophth buphthalm conjunct periorb
        drusen
    """,
    "ear": """
        ear$ ears$ auditor mastoid mesotymp epitymp hypotymp tympan cochlea vestibule semicirc ossic
        malleus incus stapes scutum tegmen cholesteat otic otitis otoscler petrous labyrinth pinna
        iac$ eac$ round-window oval-window prussak jugular-foramen glomus
    """,
    "sinonasal": """
        sinus$ sinuses paranasal maxill ethmoid sphenoid-sinus frontal-sinus nasal naso nose$
        turbinat nasophar sinusit mucocel choana septal-dev osteomeat ostiomeat antrum antral
        cribrif polyp$ antrochoan ringertz mucosal rhino
    """,
    "mouth": """
        tooth teeth dental denti odonto mandib molar premolar incisor alveolar-ridge jaw$ palat
        tongue lingual$ gingiv ameloblast keratocyst dentiger oral-cavity mylohyoid floor-of-mouth
        ranula torus sublingual periapical radicul lip$ lips$ buccal masticat masseter tmj$
        temporomandib
    """,
    "neck": """
        neck$ pharyn parapharyn retropharyn oropharyn hypophar larynx laryng glott supraglott
        epiglott vallecula pirif pyriform vocal thyroid$ thyroglos parathyr goiter parotid submandib
        salivar carotid jugular sternocleid cervical-lymph brachial-cleft branchial hyoid cricoid
        arytenoid sialo wharton stensen tonsillar adenoid$ adenoids cystic-hygroma zygoma zygomatic
        pterygo infratemp face$ facial$ subglott strap torticol lemierre platysma
    """,
    "cervical_spine": """
        cervical$ c1$ c2$ c3$ c4$ c5$ c6$ c7$ atlas$ atlant axis$ odontoid dens$ c3-c c4-c c5-c c6-c
        c2-c c1-c cervicomed craniocerv hangman jefferson
    """,
    "spine": """
        spine$ spinal vertebr spondyl lumbar thoracic-spine lumbosac sacral sacrum coccy pars$ facet
        lamina$ laminae pedicle spinous disc$ discs$ disk disks disc-herni annul nucleus-pulp thecal
        ligamentum neural-foram neuroforam l1$ l2$ l3$ l4$ l5$ s1$ s2$ l1-l l2-l l3-l l4-l l5-s t1-t
        t7$ t8$ t9$ t10$ t11$ t12$ endplate end-plate schmorl scolio kypho lordo retropuls discitis
        paraspinal prevertebr paravertebr costovert extruded extrusion stenosis-of-the-canal spina$
    """,
    "cord": """
        cord$ conus cauda equina filum termin intradural extramedull intramedull myelop myelit
        syrinx syringo hydromyel tethered myelomening lipomyelo diastemat nerve-root nerve-roots
        thecal-sac anterior-horn central-canal transverse-myel ependymoma-of
    """,
    "lung": """
        lung lungs pulmon lobe-of-the-lung rul$ rml$ rll$ lul$ lll$ lingula bronch alveol acinar
        airspace air-space interstit emphys bulla bullae bleb ground-glass groundglass atelect
        consolid pneumon pneumat honeycomb cavitat hemoptys tree-in-bud crazy paving mosaic apical$
        apices bibasil perihilar hilar hilum fissure interlob septal-thick lobectom spiculat
        coin-lesion nodules$ hamartoma miliary aspergill sequestr azygos sarcoid fibrosis embol
    """,
    "pleura": """
        pleur hemithor pneumothor hydropneumo empyema hemothor costophr chylothor mesotheli asbest
        effusion effusions thoracentes thoracost chest-tube
    """,
    "mediastinum": """
        mediastin paratrach trache carina subcarin thymus thymic thymom aortopulm prevascul
        pneumomediast precarin esophag oesophag paraesoph hiatal azygoesoph teratom tracheobr
        supraclavic thoracic-inlet
    """,
    "chest_wall": """
        chest thorax thoracic rib$ ribs$ sternum sternal pectoral axilla axillar clavic intercost
        hemidiaph diaphrag scapul manubri xiphoid costal subpectoral chest-wall
    """,
    "breast": """
        breast mammo mammary nipple areola retroareol fibroadeno dcis$ lobular-carc axillary-node
        implant silicone subareol
    """,
    "heart": """
        heart cardi$ cardiac cardio myocard pericard endocard epicard atrium atria$ atrial
        ventricular-sept left-ventric right-ventric mitral tricusp aortic-valve pulmonic valve
        valvul coronary lad$ rca$ lvot$ interatrial interventric foramen-ovale ductus arterios
        fallot situs dextroc lv$ rv$ la$ ra$ lvef gated appendage papillary
    """,
    "great_vessels": """
        aorta aortic aorto arch$ subclavian innominate brachioceph coarctat ascending-aort
        descending-aort dissect intimal flap$ false-lumen true-lumen sinotub svc$ pulmonary-arter
        pulmonary-vein pulmonary-trunk hemiazyg azygous great-vessel takayasu
    """,
    "abdominal_vessels": """
        ivc$ vena$ cava$ caval celiac sma$ smv$ imv$ ima$ portal splenic-vein splenic-art
        hepatic-arter hepatic-vein renal-arter renal-vein renal-arteries iliac$ mesenteric-art
        mesenteric-vein mesenteric-vess cavernous-trans varic collateral portosystem infrarenal
        suprarenal gonadal endoleak stent$ budd aneurysm pseudoaneurysm thromb
    """,
    "limb_vessels": """
        femoral-art femoral-vein poplit brachial-art axillary-art axillary-vein saphen runoff
        claudic common-femoral tibial-art peroneal-art aortofem dvt$ vein$ veins$ venous artery$
        arteries arterial mra$ angiogra stenosis stenotic occlusion
    """,
    "liver": """
        liver hepat intrahep couinaud caudate-lobe subcapsular morison fissure-for cirrho
        hemangioma$ hcc$ fnh$ biliru perihep transhep echinoc hydatid amebic steato glisson
        periportal porta-hep
    """,
    "biliary": """
        bile biliar gallbladder gall$ cholang cholecyst choledoch cystic-duct common-bile cbd$ chd$
        ampull mrcp$ ercp$ caroli klatskin papilla-of gallstone pericholecyst extrahepatic
    """,
    "pancreas": """
        pancrea uncinate wirsung peripancre islet insulinom ipmn$ ipmt$ pseudocyst duct-of
        lesser-sac annular-panc santorini
    """,
    "spleen": """
        spleen splenic splenom splenul asplen polysplen perisplen accessory-spleen wandering-spl
        splenosis
    """,
    "stomach": """
        stomach gastric gastro antral-thick pylor duoden fundus linitis gist$ hiatal-hern
        greater-curv lesser-curv rugal bezoar ulcer esophagogastric ge$
    """,
    "small_bowel": """
        bowel jejun ileum ileal ileo intestin enteric entero meckel's diverticulum$ intussus sbo$
        loops mesenter mesentery small-bowel transition-point valvulae malrot volvul crohn strictur
        terminal-ileum ligament-of-treitz pneumatosis feces-sign
    """,
    "colon": """
        colon colonic colo$ colorect cecum cecal caecum appendi sigmoid$ rect$ rectum rectal
        perirect anus$ anal$ anorect diverticulit diverticul pericol haustr hepatic-flex
        splenic-flex flexure epiploic ileocec colit typhlit stool fecal feces perianal ischiorect
        polypos colonograph colonoscop taenia
    """,
    "peritoneum": """
        periton omentum omental ascites mesocol paracolic gutter free-air free-fluid pneumoperiton
        retroperiton carcinomatos pseudomyx lesser-sac hemoperiton subphren subhep intraperiton
        desmoid caking perihepatic
    """,
    "abdomen": """
        abdom abd$ quadrant ruq$ luq$ rlq$ llq$ flank umbil inguinal hernia ventral-hern spigelian
        abdominal-wall rectus-sheath rectus-abdom transversus hemiabd laparo psoas oral-contrast
        po-contrast viscera organomeg
    """,
    "kidney": """
        kidney renal nephr pyelo calyc calyx calyces caliec caliect uretero-pelv upj$ perirenal
        perineph pararen gerota hydroneph angiomyolip oncocyt wilms nephroblast horseshoe corticomed
        collecting-system duplicated-coll medullary-spong urothel polycystic staghorn stone stones
        calcul moiety parapelv
    """,
    "adrenal": """
        adren pheochrom phaeochrom aldoster cortisol cushing conn myelolip neuroblast paragangl
        suprarenal-gl zuckerkandl
    """,
    "bladder": """
        bladder$ bladders ureter urachus urachal uvj$ vesic vesico cystogr cystoc trigone urethr
        urinar urete urinoma kub$ cystosc foley ivp$ intraves
    """,
    "female_pelvis": """
        uterus uterine endometr myometr adnex ovar salping fallop tubo-ov cervix vagin vulv leiomyom
        fibroid hydrosalp fetus fetal gestation gravid pregnan placent bicorn mulleri didelph
        parametr cul-de-sac dermoid broad-lig gartner bartholin endocervic corpus-lut amnio adenomyo
        hematocolp teratoma septate
    """,
    "male_pelvis": """
        prostat seminal testi testis scrot epididym spermatic penis penile cryptorch seminoma
        varicocele orchi hydrocele inguinal-canal corpora-cav undescended cowper utricle vas$
    """,
    "pelvis": """
        pelvis$ pelvic presacral perine obturator ischi pubic pubis symphys sacroil iliac-wing
        iliac-crest iliac-bone acetab ilium inguin iliopsoas pudendal
    """,
    "shoulder": """
        shoulder glenoid glenohum labrum labral supraspin infraspin subscap teres rotator cuff
        acromi deltoid coraco humer hill-sach sachs bankart bicipital biceps triceps slap$
        brachial-plex alpsa perthes
    """,
    "arm": """
        elbow olecran capitell trochlea$ radius$ radial ulna ulnar forearm wrist carpal scaph lunate
        triquet hamate capitate trapez pisiform metacarp hand$ hands finger thumb phalan tfcc$
        tenosyn antecub epicondyl
    """,
    "hip": """
        hip$ hips$ femoral-head femoral-neck trochant subtroch acetabul gluteal gluteus hamstring
        fovea capital-fem perthes-dis avn$ osteonecr avascular iliotib greater-troch thigh quadricep
        vastus rectus-femoris adductor sartorius femur femoral-shaft piriformis iliacus
    """,
    "knee": """
        knee menisc condyl intercond acl$ pcl$ mcl$ lcl$ cruciate collateral-lig patell trochlear
        tibial-plat tibial plateau popliteal-cyst baker hoffa infrapat suprapat tibia$ proximal-tib
        bucket-handle pivot lateral-femoral medial-femoral retinac fibul discoid segond
        quadriceps-tend
    """,
    "foot": """
        ankle foot$ feet$ talus talar calcan navic cuboid cuneif tarsal metatars achill plantar toe$
        toes$ lisfranc hindfoot midfoot forefoot malleol syndesm tibiotal subtalar sinus-tarsi
        perone hallux tibiofib sesamoid os-trig morton
    """,
    "bone": """
        bone bones bony osseous marrow cortex cortical-dest epiphys metaphys diaphys metadiaph
        physis physeal periost endosteal trabec sclerotic lytic lucent-les expansile osteo osteoid
        osteosarc ewing chondro enchondr exostos nidus brodie involucr sequestrum fractur
        stress-frac subchondral giant-cell fibrous-dys abc$ bone-window paget myelom hardware
        articular joint cartilag synovi pvns bursa bursit ganglion-cyst loose-bod chondromat arthr
        enthes hemarthr lipohem
    """,
    "muscle": """
        muscle muscul myosit rhabdomy intramusc tendon tendin tendino ligament fascia fasciit
        subcutan soft-tissue compartment sarcoma liposarc tear$ tears torn sprain strain retract
        avulsion myositis leg$ arm$ extremit calf$ gastrocn soleus atroph-of-the-musc forearm-flex
        edema-in-the-musc neurofibrom nerve-sheath stir$ pd$ proton fatsat fat-sat fat-supp
    """,
    "lymph": """
        lymph lymphad adenopath node$ nodes$ nodal hodgkin leukem lymphom chloroma castleman
        extramedullary-hemat myelofib marrow-infil sickle thalass
    """,
    "trauma": """
        trauma bullet gunshot stab$ wound lacerat contus hematom seatbelt extravas shrapnel mvc$
        mva$ avuls ruptur entrance crush laceration
    """,
    "ct_phase": """
        hounsfield hu$ nect$ cect$ arterial-phase portal-phase delayed-phase nephrographic excretory
        oral-and-iv enteric-contrast iv-contrast lung-window bone-algor soft-tissue-window
        coronal-reform volume-render helical spiral virtual
    """,
    "endocrine": """
        thyroid goiter pituitar adrenal parathyr gland glands carcinoid gastrinom insulinom
        pheochromocyt aldosteronom graves-dis hyperpar
    """,
}


def _pattern(stems: str) -> re.Pattern[str]:
    words = [stem.replace("-", r"[ -]?") for stem in stems.split()]
    parts = [rf"{word[:-1]}\b" if word.endswith("$") else word for word in words]
    return re.compile(rf"\b(?:{'|'.join(parts)})")


class RegionCounter:
    """Counts the words of each region in a caption.

    Args:
        lexicon: stems by region; ``LEXICON`` or the copy that a stored model carries.
    """

    def __init__(self, lexicon: Mapping[str, str] = LEXICON) -> None:
        self.lexicon = {region: " ".join(stems.split()) for region, stems in lexicon.items()}
        self._patterns = [_pattern(stems) for stems in self.lexicon.values()]

    def transform(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """Region features of each caption.

        Args:
            captions: N texts in any letter case.

        Returns:
            float32 array of shape (N, 2 * regions): log(1 + number of different words of the region),
            then the region's share of all region words (0 to 1).
        """
        counts = np.array([self._count(caption.lower()) for caption in captions], dtype=np.float32)
        counts = counts.reshape(len(captions), len(self._patterns))
        total = counts.sum(axis=1, keepdims=True)
        return np.hstack([np.log1p(counts), counts / np.maximum(total, 1.0)]).astype(np.float32)

    def _count(self, caption: str) -> list[int]:
        return [len(set(pattern.findall(caption))) for pattern in self._patterns]
